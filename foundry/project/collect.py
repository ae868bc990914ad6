"""Finds and removes what nothing refers to any more in the project's state. Behind `foundry gc`.

Whatever somebody may still need is kept: what runs, what was not delivered or registered yet, the training of the
present parameters, of the model in the folder, of every registered version, of the tip of every branch, tag and DVC
experiment, and whatever is younger than some days. DVC's cache belongs to DVC, the files of versions to MLflow: neither
is touched.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from foundry.config import Config, DataError
from foundry.config.pipelines import EXPORTS
from foundry.project.status import STATE, size, undelivered_runs
from foundry.tracking.names import FINGERPRINT, FLOW_RUN
from foundry.utils.files import read_json, remove_dir
from foundry.utils.flow_runs import FILE as RUN_NOTE
from foundry.utils.flow_runs import BuildNote, read_note
from foundry.utils.locks import holder_of, locked_if_free

DAY = 86_400.0  # seconds
TEMPORARY = 1.0  # days after which a temporary file must be that of a killed process


@dataclass(frozen=True)
class Piece:
    """A file or folder.

    Attributes:
        why: why it is kept, or why it can be removed.
    """

    path: Path
    bytes: int
    why: str

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "path": str(self.path)}


@dataclass
class Collected:
    """What can be removed, and what is kept."""

    free: list[Piece] = field(default_factory=list)
    kept: list[Piece] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """As JSON values, for `--json`."""
        return {"free": [p.to_dict() for p in self.free], "kept": [p.to_dict() for p in self.kept]}

    def add(self, path: Path, keep: str | None, free: str) -> None:
        """Adds a file or folder, without the worktree in it.

        Args:
            keep: why it is kept; None if it can be removed.
            free: why it can be removed.
        """
        (self.kept if keep else self.free).append(Piece(path, size(path) - size(path / "tree"), keep or free))


def collect(cfg: Config, root: Path = Path("."), days: float = 7.0) -> Collected:
    """Finds what can be removed and what is kept, with the reasons; removes nothing.

    Args:
        days: what is younger than this is kept, whether something refers to it or not.

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
            busy = "its run is active" if holder_of(folder / "lock") else None
            found.add(tree, busy, "worktree of a run that died")
        found.add(folder, runs[folder], "parameters, lock and reports of a flow's run that nothing refers to")
    references = _references(cfg, root, registered, [f for f, why in runs.items() if why])
    undelivered = {f.name for f in undelivered_runs(root)}
    for folder in _folders(state / "train"):
        why = references.get(folder.name)
        if holder_of(folder / "lock") or holder_of(folder / "tracker.lock"):
            why = "it runs"
        elif folder.name in undelivered:
            why = "MLflow does not have all of its points: `foundry sync`"
        found.add(folder, why or _young(folder, days), "checkpoints of a training that nothing refers to")
    for log in sorted((state / "ui").glob("*.log.*")):
        found.add(log, _young(log, days), "a rotated log")
    for sizes in sorted((state / "baselines").glob("*.json")):
        found.add(sizes, _young(sizes, days), "sizes of compressed text that no evaluation asked for since")
    for file in sorted((state / "compile").glob("*.so")):
        found.add(file, _young(file, days), "a compiled step that no training uses any more")
    for left in _temporary(root):
        found.add(left, _young(left, TEMPORARY), "left by a process that was killed while it wrote")
    return found


def remove(root: Path, pieces: list[Piece]) -> int:
    """Removes what `collect` found to be removable; returns the number of bytes."""
    done = 0
    for piece in pieces:
        with ExitStack() as stack:
            owner = piece.path.parent if piece.path.name == "tree" else piece.path
            locks = [lock for lock in (owner / "lock", owner / "tracker.lock") if lock.is_file()]
            if not all([stack.enter_context(locked_if_free(lock, note=None)) for lock in locks]):
                continue  # a process has started to work there meanwhile
            if piece.path.name == "tree":
                command = ["git", "worktree", "remove", "--force", "--force", str(piece.path)]
                subprocess.run(command, cwd=root, capture_output=True, check=False)  # git may have forgotten it
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
    """The reason to keep it if the newest of its files is younger than so many days; else None."""
    files = [path, *(p for p in path.rglob("*") if "tree" not in p.relative_to(path).parts[:1])]
    age = (time.time() - max(p.lstat().st_mtime for p in files)) / DAY
    return f"younger than {days:g} days" if age < days else None


def _kept_runs(runs: Path, registered: list[dict[str, str]], days: float) -> dict[Path, str | None]:
    """{folder of a flow's run: why it is kept; None if nothing refers to it}."""
    folders = _folders(runs)
    flows = {tags.get(FLOW_RUN, "")[:8] for tags in registered} - {""}
    trained = [f for f in folders if (f / "reports/train.json").is_file()]
    builds = [f for f in trained if isinstance(read_note(f), BuildNote)]
    newest = max(builds, key=lambda f: (f / RUN_NOTE).stat().st_mtime, default=None)
    kept: dict[Path, str | None] = {}
    for folder in folders:
        if holder_of(folder / "lock"):
            kept[folder] = "its run is active"
        elif folder.name in flows:
            kept[folder] = "a registered version was built by it"
        elif (folder / "sweep.json").exists():
            kept[folder] = "its sweep is still open in MLflow"
        elif folder == newest:
            kept[folder] = "the newest one: the next run is compared with it"
        else:
            kept[folder] = _young(folder, days)
    return kept


def _references(cfg: Config, root: Path, registered: list[dict[str, str]], runs: list[Path]) -> dict[str, str]:
    """{fingerprint: what refers to it}; of several references the most important one, which is written last."""

    def fingerprint(path: Path) -> str | None:
        return _json(path).get("fingerprint")

    found = {fingerprint(run / "reports/train.json"): f"the kept run {run.name} trained it" for run in runs}
    found |= _committed(root)
    found |= {tags.get(FINGERPRINT): "a registered version was trained by it" for tags in registered}
    for export in EXPORTS:
        for path in (root / STATE / "register").glob(f"*/{export}/proof.json"):
            found[fingerprint(path)] = "its registration waits: `foundry sync`"
    for path in (root / "artifacts/model/config.json", root / "reports/train.json"):
        found[fingerprint(path)] = "the model in this folder"
    for path in sorted((root / "artifacts/chat").glob("*/config.json")):
        found[fingerprint(path)] = f"the model in {path.parent.relative_to(root)}"
    found[_present(cfg, root)] = "the present parameters"
    return {k: v for k, v in found.items() if k}


def _present(cfg: Config, root: Path) -> str | None:
    """The fingerprint of the training that the parameters and the shards in the folder define."""
    from foundry.data.tokens.index import NAME as INDEX
    from foundry.data.tokens.index import read_index
    from foundry.training.identity import fingerprint, identity

    if not (root / "data/shards" / INDEX).exists():
        return None
    index = read_index(root / "data/shards")
    return fingerprint(identity(cfg.model, cfg.train, cfg.seed, index.identity))


def _committed(root: Path) -> dict[str, str]:
    """{fingerprint: what has it in its reports}, of every branch, tag, stash and DVC experiment."""
    found = {}
    command = ["git", "for-each-ref", "--format=%(objectname) %(refname)"]
    refs = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    for line in refs.stdout.splitlines():
        commit, _, name = line.partition(" ")
        command = ["git", "show", f"{commit}:./reports/train.json"]
        shown = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        try:
            found[json.loads(shown.stdout)["fingerprint"]] = f"{name} has its report"
        except (ValueError, KeyError, TypeError):  # this commit has no training yet
            continue
    return found


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
    outs, state = ("data", "artifacts", "artifacts/tokenizer", "artifacts/chat", "reports"), ".foundry"
    for top in (*outs, state, *(f"{state}/{t}" for t in ("baselines", "compile", "train/*", "train/*/checkpoints"))):
        yield from sorted(root.glob(f"{top}/.*.tmp"))


def _json(path: Path) -> dict[str, Any]:
    """The content of a file of Foundry; empty if it is missing.

    Raises:
        DataError: if it is damaged, because what it refers to is not known then.
    """
    if not path.exists():
        return {}
    what = "what it refers to must not be removed; restore it (`foundry verify --repair`) or remove it"
    value = read_json(path, what, DataError)
    if not isinstance(value, dict):
        raise DataError(f"{path} is not what Foundry writes there: {what}")
    return value
