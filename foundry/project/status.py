"""What the project does now, what waits, and what its state takes on the disk. Behind `foundry status`.

Everything is read from files and from the system's list of processes: it needs no server, takes no lock and writes
nothing.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
import urllib.parse
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import psutil

from foundry.config import ConfigError, FoundryError
from foundry.config.pipelines import read_stages
from foundry.tracking.delivery import RUN
from foundry.tracking.spool import METRICS, OFFSET, Logged, parse_line
from foundry.utils.files import read_json
from foundry.utils.locks import holder_of

STATE = Path(".foundry")
SIZED = ("train", "runs", "register", "downloads", "mlartifacts", "mlflow.db", "prefect", "ui", "baselines")


@dataclass(frozen=True)
class Entry:
    """Something that runs, has stopped or waits."""

    what: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; what is None is left out."""
        return {"what": self.what, **{k: v for k, v in asdict(self).items() if v is not None}}

    def line(self) -> str:
        """For a person."""
        raise NotImplementedError


@dataclass(frozen=True)
class Training(Entry):
    """A training with a state folder.

    Attributes:
        run: its fingerprint.
        saved_step: step of the newest checkpoint.
        step: the last step that is known.
        loss: at that step, if the training logged one.
        logged_s_ago: seconds since then.
        pid: its process; None if it does not run.
    """

    what = "training"
    run: str
    steps: int
    saved_step: int
    step: int
    loss: float | None
    logged_s_ago: float | None
    finished: bool
    pid: int | None

    def line(self) -> str:
        if self.pid is None:
            at = f"at step {self.saved_step:,} of {self.steps:,}"
            return f"stopped: training {self.run} {at}; with its parameters `dvc repro` resumes it"
        loss = "" if self.loss is None else f", loss {self.loss:.3f}, logged {self.logged_s_ago:.0f} s ago"
        return f"runs: training {self.run}, step {self.step:,} of {self.steps:,}{loss} (pid {self.pid})"


@dataclass(frozen=True)
class Stage(Entry):
    """A stage that DVC builds, in the project or in a flow's worktree."""

    what = "stage"
    stage: str
    pid: int
    folder: str

    def line(self) -> str:
        return f"runs: stage {self.stage} in {self.folder} (dvc, pid {self.pid})"


@dataclass(frozen=True)
class FlowBuild(Entry):
    """A flow that builds the project."""

    what = "flow"
    pid: int | None
    note: str

    def line(self) -> str:
        return f"runs: a flow builds this project (pid {self.pid}) {self.note}".rstrip()


@dataclass(frozen=True)
class WaitingMetrics(Entry):
    """Metrics of a training that has ended, which MLflow did not take."""

    what = "metrics"
    run: str
    points: int
    why: str

    def line(self) -> str:
        return f"waits: {self.points:,} points of run {self.run}: {self.why}"


@dataclass(frozen=True)
class WaitingRegistration(Entry):
    """An export that could not be registered; `export` is its hash."""

    what = "registration"
    export: str
    why: str

    def line(self) -> str:
        return f"waits: export {self.export[:12]}: {self.why}"


@dataclass(frozen=True)
class WebPage:
    """A server of `make ui`."""

    url: str
    answers: bool


@dataclass(frozen=True)
class Disk:
    """Bytes that are free on the project's disk, and that parts of the project use."""

    free_bytes: int
    used_bytes: dict[str, int]

    def line(self) -> str:
        used = sorted(self.used_bytes.items(), key=lambda kv: -kv[1])
        return "; ".join([f"disk: {mib(self.free_bytes)} free", *(f"{k} {mib(v)}" for k, v in used)])


@dataclass(frozen=True)
class Status:
    """The state of a project; `ui` has the servers of `make ui` by name."""

    running: list[Entry]
    stopped: list[Training]
    waiting: list[Entry]
    ui: dict[str, WebPage]
    disk: Disk

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        entries = {"running": self.running, "stopped": self.stopped, "waiting": self.waiting}
        found = {name: [e.to_dict() for e in part] for name, part in entries.items()}
        return {**found, "ui": {name: asdict(page) for name, page in self.ui.items()}, "disk": asdict(self.disk)}

    def lines(self) -> Iterator[str]:
        """For a person."""
        if not self.running:
            yield "nothing runs"
        yield from (entry.line() for entry in (*self.running, *self.stopped, *self.waiting))
        for name, page in self.ui.items():
            yield f"{name}: {page.url}" + ("" if page.answers else " (does not answer: `make ui` starts it)")
        if not self.ui:
            yield "no web pages: `make ui` starts them"
        yield self.disk.line()


def status(root: Path = Path(".")) -> Status:
    """Looks at the project at `root`."""
    trainings = list(_trainings(root))
    running = [t for t in trainings if t.pid is not None]
    return Status(
        running=[*running, *_stages(root), *_flows(root)],
        stopped=[t for t in trainings if t.pid is None and not t.finished],
        waiting=[*_metrics(root), *_registrations(root)],
        ui=_ui(root),
        disk=_disk(root),
    )


def _trainings(root: Path) -> Iterator[Training]:
    for folder in sorted(p.parent for p in (root / STATE / "train").glob("*/identity.json")):
        try:
            steps = int(read_json(folder / "identity.json", "the identity of a run")["train.steps"])
        except (FoundryError, KeyError, TypeError, ValueError):
            continue  # it does not belong to a training; `foundry gc` lists the folder
        saved = max((int(p.parent.name.removeprefix("step-")) for p in checkpoints(folder)), default=0)
        point, held = last_point(folder / METRICS), holder_of(folder / "lock")
        yield Training(
            run=folder.name,
            steps=steps,
            saved_step=saved,
            step=max(point.step, saved) if point else saved,
            loss=point.metrics["loss"] if point else None,
            logged_s_ago=round(time.time() - point.time / 1000, 1) if point else None,
            finished=saved >= steps,
            pid=held.pid if held else None,
        )


def checkpoints(folder: Path) -> list[Path]:
    """The markers of the complete checkpoints in the state folder of a training."""
    return sorted(folder.glob("checkpoints/step-*/checkpoint.json"))


def last_point(spool: Path, tail: int = 1 << 16) -> Logged | None:
    """The last point with a loss of a spool; None if there is none among the last `tail` bytes."""
    try:
        with open(spool, "rb") as f:
            f.seek(max(0, os.path.getsize(spool) - tail))
            lines = f.read().split(b"\n")
    except OSError:
        return None
    # Lines that a kill left incomplete, or where reading began, are skipped.
    records = (parse_line(line) for line in reversed(lines))
    return next((r for r in records if isinstance(r, Logged) and "loss" in r.metrics), None)


def _stages(root: Path) -> Iterator[Stage]:
    """Reads `.dvc/tmp/rwlock`, where DVC notes which process writes which out, of the project and of each worktree."""
    for top in (root, *sorted((root / STATE / "runs").glob("*/tree"))):
        try:
            table = json.loads((top / ".dvc/tmp/rwlock").read_text(encoding="utf-8"))
            writers = {path: entry["write"] for path, entry in table.items() if entry.get("write")}
            stages = read_stages(top)
        except (OSError, ValueError, AttributeError, TypeError, KeyError, ConfigError):
            continue  # DVC does not run, or is writing the file just now
        seen = set()
        for path, writer in writers.items():
            for name in (n for n, s in stages.items() if any(path.endswith(o) for o in s.outs)):
                if psutil.pid_exists(writer["pid"]) and name not in seen:
                    seen.add(name)
                    yield Stage(name, writer["pid"], str(top))


def _flows(root: Path) -> Iterator[FlowBuild]:
    if held := holder_of(root / STATE / "runs" / "building"):
        yield FlowBuild(held.pid, held.note)


def undelivered_runs(root: Path) -> Iterator[Path]:
    """State folders of trainings that were tracked and have ended, and of which MLflow lacks something."""
    for folder in sorted(p.parent for p in (root / STATE / "train").glob(f"*/{RUN}")):
        ended = holder_of(folder / "tracker.lock") is None and holder_of(folder / "lock") is None
        delivered = _text(folder / "delivered") == (_text(folder / "status") or "KILLED") and not undelivered(folder)
        if ended and not delivered:
            yield folder


def _metrics(root: Path) -> Iterator[WaitingMetrics]:
    for folder in undelivered_runs(root):
        try:
            uri = read_json(folder / RUN, "the record of a tracked run")["uri"]
        except (FoundryError, KeyError, TypeError):
            uri = f"an unknown address (its {RUN} is damaged)"
        why = f"MLflow at {uri} did not take them; `foundry sync` delivers them"
        yield WaitingMetrics(folder.name, undelivered(folder), why)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return None


def undelivered(folder: Path) -> int:
    """The number of lines of a spool that MLflow does not have."""
    try:
        offset = int((folder / OFFSET).read_text())
    except (OSError, ValueError):
        offset = 0
    try:
        with open(folder / METRICS, "rb") as f:
            f.seek(offset)
            return sum(line.endswith(b"\n") for line in f)
    except OSError:
        return 0


def _registrations(root: Path) -> Iterator[WaitingRegistration]:
    for path in sorted((root / STATE / "register").glob("*/waiting.json")):
        why = "MLflow was away when it was built; `foundry sync` registers it"
        yield WaitingRegistration(path.parent.name, why)


def _ui(root: Path) -> dict[str, WebPage]:
    """Reads the addresses that `make ui` wrote."""
    path = root / STATE / "ui" / "addresses.json"
    try:
        known = read_json(path, "the addresses of make ui")
        return {name: WebPage(url, _answers(url)) for name, url in known.items()}
    except (FoundryError, AttributeError):
        return {}


def _answers(url: str) -> bool:
    at = urllib.parse.urlsplit(str(url))
    try:
        with socket.create_connection((at.hostname or "", at.port or 80), timeout=1):
            return True
    except (OSError, ValueError):
        return False


def _disk(root: Path) -> Disk:
    parts = {f".foundry/{name}": size(root / STATE / name) for name in SIZED}
    parts |= {name: size(root / name) for name in ("data", "artifacts", ".dvc/cache")}
    return Disk(shutil.disk_usage(root).free, {k: v for k, v in parts.items() if v})


def size(path: Path) -> int:
    """Bytes of a file, or of all files of a folder: each file is counted once, and links are not followed."""
    if path.is_file():
        return path.stat().st_size
    seen: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            try:
                s = os.lstat(os.path.join(folder, name))
            except OSError:  # it was removed meanwhile
                continue
            seen[s.st_dev, s.st_ino] = s.st_size
    return sum(seen.values())


def mib(n: int) -> str:
    """A number of bytes in MiB."""
    return f"{n / 2**20:,.1f} MiB"
