"""What of the project's state nothing refers to any more. Behind `foundry gc`.

Kept is whatever somebody may still need: what runs, what was not delivered or registered yet, the training of the present parameters and of the
model in the folder, of every registered version, of the tip of every branch, tag and DVC experiment, and whatever is younger than some days.
DVC's cache is DVC's own, the files of MLflow's versions are MLflow's.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundry.config import Config, DataError
from foundry.project.status import STATE, size, undelivered_runs
from foundry.tracking.names import FINGERPRINT
from foundry.utils.files import read_json, remove_dir
from foundry.utils.locks import holder_of, locked_if_free

DAY = 86_400.0  # seconds
TEMPORARY = 1.0  # days after which a temporary file is of a process that was killed


@dataclass(frozen=True)
class Piece:
    """A file or folder.

    Attributes:
        why: why it is kept, or may go.
    """

    path: Path
    bytes: int
    why: str


@dataclass
class Collected:
    free: list[Piece] = field(default_factory=list)
    kept: list[Piece] = field(default_factory=list)

    def add(self, path: Path, keep: str | None, free: str) -> None:
        (self.kept if keep else self.free).append(Piece(path, size(path) - size(path / "tree"), keep or free))


def collect(cfg: Config, root: Path = Path("."), days: float = 7.0) -> Collected:
    """What may go and what stays, with the reasons; nothing is removed.

    Args:
        days: how long everything is kept, whether something refers to it or not.

    Raises:
        TrackingError: if MLflow cannot say which versions are registered.
        DataError: if a file that may refer to something is damaged.
    """
    found, state = Collected(), root / STATE
    registered = _registered(cfg)
    runs = _kept_runs(state / "runs", registered, days)
    for folder in _folders(state / "runs"):
        tree = folder / "tree"
        if tree.exists():
            busy = "its run is at work" if holder_of(folder / "lock") else None
            found.add(tree, busy, "worktree of a run that died")
        found.add(folder, runs[folder], "parameters, lock and reports of a flow's run that nothing refers to")
    references = _references(cfg, root, registered, [f for f, why in runs.items() if why])
    undelivered = {f.name for f in undelivered_runs(root)}
    for folder in _folders(state / "train"):
        why = references.get(folder.name)
        if holder_of(folder / "lock") or holder_of(folder / "tracker.lock"):
            why = "it runs"
        elif folder.name in undelivered:
            why = "MLflow has not all of its points: `foundry sync`"
        found.add(folder, why or _young(folder, days), "checkpoints of a training that nothing refers to")
    for log in sorted((state / "ui").glob("*.log.*")):
        found.add(log, _young(log, days), "a log that was set aside")
    for left in _temporary(root):
        found.add(left, _young(left, TEMPORARY), "left by a process that was killed while it wrote")
    return found


def remove(root: Path, pieces: list[Piece]) -> int:
    """Removes what `collect` found to be free; returns the bytes."""
    done = 0
    for piece in pieces:
        with ExitStack() as stack:
            owner = piece.path.parent if piece.path.name == "tree" else piece.path
            locks = [lock for lock in (owner / "lock", owner / "tracker.lock") if lock.is_file()]
            if not all([stack.enter_context(locked_if_free(lock, note=None)) for lock in locks]):
                continue  # somebody began to work there meanwhile
            if piece.path.name == "tree":
                command = ["git", "worktree", "remove", "--force", "--force", str(piece.path)]
                subprocess.run(command, cwd=root, capture_output=True, check=False)  # git may not know it any more
            if piece.path.is_dir() and not piece.path.is_symlink():
                remove_dir(piece.path)
            else:
                piece.path.unlink(missing_ok=True)
            done += piece.bytes
    subprocess.run(["git", "worktree", "prune"], cwd=root, capture_output=True, check=False)
    return done


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.glob("*") if p.is_dir())


def _young(path: Path, days: float) -> str | None:
    """Why it is kept, if the newest of its files is younger than so many days."""
    files = [path, *(p for p in path.rglob("*") if "tree" not in p.relative_to(path).parts[:1])]
    age = (time.time() - max(p.lstat().st_mtime for p in files)) / DAY
    return f"younger than {days:g} days" if age < days else None


def _kept_runs(runs: Path, registered: list[dict[str, str]], days: float) -> dict[Path, str | None]:
    """{folder of a flow's run: why it is kept, None if nothing refers to it}."""
    folders = _folders(runs)
    flows = {tags.get("prefect.flow_run_id", "")[:8] for tags in registered} - {""}
    with_report = [f for f in folders if (f / "reports/train.json").is_file() and "trial" not in _json(f / "run.json")]
    newest = max(with_report, key=lambda f: (f / "run.json").stat().st_mtime, default=None)
    kept: dict[Path, str | None] = {}
    for folder in folders:
        if holder_of(folder / "lock"):
            kept[folder] = "its run is at work"
        elif folder.name in flows:
            kept[folder] = "a registered version was built by it"
        elif (folder / "sweep.json").exists():
            kept[folder] = "its sweep is still open in MLflow"
        elif folder == newest:
            kept[folder] = "the newest, with which the next run is compared"
        else:
            kept[folder] = _young(folder, days)
    return kept


def _references(cfg: Config, root: Path, registered: list[dict[str, str]], runs: list[Path]) -> dict[str, str]:
    """{fingerprint: what refers to it}; what matters most is written last."""
    found = {
        _json(run / "reports/train.json").get("fingerprint"): f"the kept run {run.name} trained it" for run in runs
    }
    found |= dict(_committed(root))
    found |= {tags.get(FINGERPRINT): "a registered version was trained by it" for tags in registered}
    for path in (root / STATE / "register").glob("*/artifacts/export/proof.json"):
        found[_json(path).get("fingerprint")] = "its registration waits: `foundry sync`"
    for path in (root / "artifacts/model/config.json", root / "reports/train.json"):
        found[_json(path).get("fingerprint")] = "the model in this folder"
    found[_present(cfg, root)] = "the present parameters"
    return {k: v for k, v in found.items() if k}


def _present(cfg: Config, root: Path) -> str | None:
    """The fingerprint of the training that the parameters and the shards in the folder make."""
    from foundry.data.tokens.index import read_index
    from foundry.training.identity import fingerprint, identity

    try:
        index = read_index(root / "data/shards")
    except DataError:
        return None
    return fingerprint(identity(cfg.model, cfg.train, cfg.seed, index.identity))


def _committed(root: Path) -> Iterator[tuple[str, str]]:
    """(fingerprint, what has it in its reports) of every branch, tag, stash and DVC experiment."""
    command = ["git", "for-each-ref", "--format=%(objectname) %(refname)"]
    refs = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    for line in refs.stdout.splitlines():
        commit, _, name = line.partition(" ")
        command = ["git", "show", f"{commit}:./reports/train.json"]
        shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        try:
            yield json.loads(shown.stdout)["fingerprint"], f"{name} has its report"
        except (ValueError, KeyError, TypeError):  # no training yet at this commit
            continue


def _registered(cfg: Config) -> list[dict[str, str]]:
    """The tags of every registered version."""
    from foundry.tracking import tracking_uri
    from foundry.tracking.address import sqlite_path
    from foundry.tracking.registry import reached
    from foundry.tracking.search import every_model, every_version

    uri = tracking_uri(cfg.runtime)
    store = sqlite_path(uri)
    if store is not None and not store.exists():
        return []
    with reached(uri, "ask which versions are registered") as client:
        return [dict(v.tags) for model in every_model(client) for v in every_version(client, model.name)]


def _temporary(root: Path) -> Iterator[Path]:
    """Temporary files and folders of `foundry.utils.files` beside the outs and the checkpoints."""
    for top in (
        "data",
        "artifacts",
        "artifacts/tokenizer",
        "reports",
        ".foundry",
        ".foundry/train/*",
        ".foundry/train/*/checkpoints",
    ):
        yield from sorted(root.glob(f"{top}/.*.tmp"))


def _json(path: Path) -> dict[str, Any]:
    """What a file of ours says; nothing if it is missing.

    Raises:
        DataError: if it is damaged: what it refers to is not known then.
    """
    if not path.exists():
        return {}
    what = "what it refers to must not be removed; restore it (`foundry verify --repair`) or remove it"
    value = read_json(path, what, DataError)
    if not isinstance(value, dict):
        raise DataError(f"{path} is not what Foundry writes there: {what}")
    return value
