"""What `foundry doctor` looks at in the project's folder and near it: disk, locks, DVC, MLflow, Prefect.

Nothing is changed. A temporary folder is made in the project and removed, since a lock is only proved by taking it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from foundry.config import ConfigError, DataError, LockError, Runtime
from foundry.config.pipelines import LOCKS, read_stages
from foundry.project.doctor.finding import Finding, note, ok, problem
from foundry.project.status import mib
from foundry.tracking.address import sqlite_path
from foundry.tracking.settings import connect, prepare_environment, reason, tracking_uri
from foundry.utils.dvc_files import is_complete
from foundry.utils.dvc_record import Cache, recorded_outs
from foundry.utils.locks import exclusive, holder_of
from foundry.utils.served import addresses

ENOUGH = 2 << 30  # bytes: data, models, cache and state of the default profile take about 0.7 GiB after one build
TIMEOUT = 3.0  # seconds that a server may take to say that it lives
HELD = ("train/*/lock", "runs/building", "ui/lock", "compile/lock", "*.lock")  # below .foundry/


def disk(root: Path) -> Iterator[Finding]:
    """Room on the project's disk."""
    free = shutil.disk_usage(root).free
    seen = f"{mib(free)} free in {root}"
    if free >= ENOUGH:
        yield ok("disk", seen)
    else:
        advice = "make room: `foundry gc` lists what nothing refers to any more, `dvc gc --workspace` frees DVC's cache"
        yield problem("disk", f"{seen}, {mib(ENOUGH)} are advisable", advice)


def locks(root: Path) -> Iterator[Finding]:
    """Whether a lock has an effect on this file system, and which are held."""
    try:
        with tempfile.TemporaryDirectory(prefix=".foundry-doctor-", dir=root) as folder:
            path = Path(folder) / "lock"
            with exclusive(path), contextlib.suppress(LockError), exclusive(path):
                advice = "move the project to a local disk: two processes would build in it at the same time"
                yield problem("locks", f"a lock has no effect on the file system of {root}", advice)
                return
    except OSError as e:
        advice = "make the folder writable, or move the project to a disk with locks (flock)"
        yield problem("locks", f"a lock cannot be taken in {root}: {e.strerror or e}", advice)
        return
    found = [(p, holder_of(p)) for pattern in HELD for p in sorted((root / ".foundry").glob(pattern))]
    held = [f"{p.relative_to(root)} (pid {holder.pid})" for p, holder in found if holder]
    yield ok("locks", f"they work here; held now: {', '.join(held) or 'none'}")


def dvc(root: Path) -> Iterator[Finding]:
    """DVC's lock files, its cache, and the outs that neither the project nor the cache has."""
    if not (root / ".dvc").is_dir():
        yield note(
            "dvc", f"{root} is no project with DVC", "use a clone of Foundry for `make repro`; other commands work"
        )
        return
    damaged = [name for name in LOCKS if (root / name).exists() and not is_complete((root / name).read_bytes())]
    if damaged:
        yield problem("dvc", f"{', '.join(damaged)} is damaged: DVC was killed", "`foundry check` repairs it")
        return
    try:
        cache, outs = Cache(root), recorded_outs(root).values()
    except DataError as e:
        yield problem("dvc", str(e), "correct .dvc/config, or make setup if DVC itself is broken")
        return
    at = next(p for p in (cache.folder, *cache.folder.parents) if p.exists())
    if not os.access(at, os.W_OK):
        yield problem(
            "dvc", f"the cache {cache.folder} cannot be written", "make it writable, or `dvc cache dir FOLDER`"
        )
        return
    if at.stat().st_dev != root.stat().st_dev:
        advice = "`dvc cache dir` names a folder on the same disk, where DVC can link files instead of copying them"
        yield note(
            "dvc",
            f"the cache {cache.folder} is on another disk than the project: each file takes its place twice",
            advice,
        )
    lost = [out.path for out in outs if not (root / out.path).exists() and not cache.path(out.md5).exists()]
    if lost:
        advice = f"`dvc pull {lost[0]}` fetches it if a remote has it; `dvc repro` builds what is missing"
        yield note(
            "dvc", f"{len(lost)} of {len(outs)} recorded outs are neither here nor in the cache: {lost[0]}, …", advice
        )
    else:
        stages = len(read_stages(root))
        yield ok("dvc", f"{stages} stages; the project or the cache {cache.folder} has all {len(outs)} recorded outs")


def mlflow(runtime: Runtime) -> Iterator[Finding]:
    """The store of MLflow: whether it can be opened, or its server answers."""
    if not runtime.tracking:
        yield ok("mlflow", "runtime.tracking is false: nothing is sent")
        return
    try:
        uri = tracking_uri(runtime)
    except ConfigError as e:
        yield problem("mlflow", str(e), "correct runtime.tracking_uri of params.yaml or MLFLOW_TRACKING_URI")
        return
    store = sqlite_path(uri)
    try:
        if store and not store.exists():
            yield ok("mlflow", f"{store} does not exist yet: the first run makes it")
            return
        seen = _opened(store) if store else _answer(uri)
    except Exception as e:  # of SQLite, of MLflow or of the network: each means that it cannot be used
        advice = "training works without it: metrics wait in .foundry/ and `foundry sync` delivers them. " + (
            f"Restore {store} from a backup (`foundry backup` makes them)"
            if store
            else "Start that server (`make ui` starts one here), or set runtime.tracking_uri"
        )
        yield note("mlflow", f"{uri} cannot be used: {reason(e)}", advice)
    else:
        yield ok("mlflow", f"{uri}: {seen}")


def _opened(store: Path) -> str:
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True, timeout=TIMEOUT)) as db:
        (runs,) = db.execute("SELECT count(*) FROM runs").fetchone()
    return f"{runs} runs"


def _answer(uri: str) -> str:
    if uri.startswith(("http://", "https://")):
        _ask(f"{uri.rstrip('/')}/health")
    else:
        prepare_environment()
        connect(uri).search_experiments(max_results=1)
    return "it answers"


def _ask(url: str) -> None:
    """Raises what the network raises, or HTTPError for another status than success."""
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        response.read(1000)


def prefect(root: Path) -> Iterator[Finding]:
    """Prefect's server: of PREFECT_API_URL, else of the `make ui` that runs here."""
    if find_spec("prefect") is None:
        yield ok("prefect", "not installed, and only schedules and forms need it: make setup extras=ui")
        return
    running = addresses(root)
    url = os.environ.get("PREFECT_API_URL") or (f"{running.prefect}/api" if running else "")
    if not url:
        yield ok("prefect", "no server, and only schedules and forms need one: `make ui` starts it")
        return
    try:
        _ask(f"{url.rstrip('/')}/health")
    except (OSError, ValueError) as e:
        advice = "start that server (`make ui` starts one here), or unset PREFECT_API_URL; `dvc repro` needs none"
        yield note("prefect", f"{url} does not answer: {reason(e)}", advice)
    else:
        yield ok("prefect", f"{url} answers")
