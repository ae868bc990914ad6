"""Hashes every file of an export and of its chain again, and restores what is damaged. Behind `foundry verify`.

Four records protect each other: `proof.json` has the hash of every file of the export; `lineage.json`, one of these
files, has the hash of every file that a number of the export depends on; `dvc.lock`, which git has, has the hash of the
whole export and of every report; the registered version has a tag with the hash of the export. Whoever changes a file
and its hash in one record has to change the next record as well.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from foundry.config import DataError, ExportError
from foundry.config.pipelines import EXPORTS, LOCKS
from foundry.export.lineage import CHAT_FOLDERS, FOLDERS, complete_folders, linked_files, read_lineage
from foundry.export.lineage import NAME as LINEAGE
from foundry.export.manifest import NAME as PROOF
from foundry.export.manifest import ChangedExportError, verify_export
from foundry.project.trace import commit_of
from foundry.utils.dvc_record import LOCK, Cache, Out, md5_file, md5_folder, out_of, read_lock, recorded_outs
from foundry.utils.files import atomic_write, sha256_file

State = Literal["ok", "changed", "missing", "added"]


@dataclass(frozen=True)
class CheckedFile:
    """A file that was compared with its record.

    Attributes:
        link: the link of the chain that it belongs to: a key of `FOLDERS`, `export` or `record`.
    """

    link: str
    path: str
    state: State

    @property
    def broken(self) -> bool:
        """Whether the file is damaged. One that is not on this disk is damage only if it is a part of the export."""
        return self.state in ("changed", "added") or (self.state == "missing" and self.link == "export")


@dataclass
class Repair:
    """What `repair` did.

    Attributes:
        restored: files that have their recorded bytes again.
        discarded: damaged objects of DVC's cache that were removed.
        rebuild: {stage that has to run again: its files that could not be restored and were removed}.
        stale: files that match `dvc.lock`, but not what the export was made of: later stages have not run since.
        left: files that only their owner can judge.
    """

    restored: list[str] = field(default_factory=list)
    discarded: list[str] = field(default_factory=list)
    rebuild: dict[str, list[str]] = field(default_factory=dict)
    stale: list[str] = field(default_factory=list)
    left: list[CheckedFile] = field(default_factory=list)


def verify(folder: str | Path, root: str | Path = ".") -> list[CheckedFile]:
    """Hashes what is on disk: the export itself, and those files of its chain that the project has.

    Raises:
        ExportError: if the folder is not an export.
    """
    folder, root = Path(folder), Path(root)
    if not os.path.exists(folder / PROOF):  # False for an impossible file name, for which Path.exists raises
        raise ExportError(f"{folder} is not an export: it has no {PROOF}; run `dvc repro export` or `dvc checkout`")
    found = _export(folder)
    intact = not any(f.broken for f in found)
    found += [*_chain(folder, root), *_recorded(folder, root, intact)]
    files: dict[str, CheckedFile] = {}  # two records may name the same file: it is damaged if one of them says so
    for f in found:
        if f.path not in files or (f.broken and not files[f.path].broken):
            files[f.path] = f
    return list(files.values())


def _export(folder: Path) -> list[CheckedFile]:
    try:
        states = dict.fromkeys([*verify_export(folder).files, PROOF], "ok")
    except ChangedExportError as e:
        states = e.states
    except ExportError:  # the proof itself
        states = {PROOF: "changed"}
    return [CheckedFile("export", f"{folder}/{name}", state) for name, state in states.items()]


def _chain(folder: Path, root: Path) -> list[CheckedFile]:
    try:
        lineage = read_lineage(folder)
    except ExportError:
        if not (folder / LINEAGE).exists():  # the export itself says so
            return []
        return [CheckedFile("record", f"{folder}/{LINEAGE}", "changed")]
    expected = {f.path: f for f in linked_files(lineage)}
    found = [CheckedFile(f.link, str(root / path), _state(root / path, f.sha256)) for path, f in expected.items()]
    for link, top in complete_folders(lineage).items():
        here = (p.relative_to(root).as_posix() for p in sorted((root / top).rglob("*")) if p.is_file())
        found += [CheckedFile(link, str(root / path), "added") for path in here if path not in expected]
    return found


def _state(path: Path, digest: str) -> State:
    if not path.is_file():
        return "changed" if path.exists() else "missing"
    return "ok" if sha256_file(path) == digest else "changed"


def _recorded(folder: Path, root: Path, intact: bool) -> list[CheckedFile]:
    """Compares the export and the reports, which git has and the export does not name, with each `dvc.lock`.

    Args:
        intact: whether the export agrees with its own proof. If it does not, a difference from DVC's record says
            nothing new.
    """
    try:
        outs = recorded_outs(root)
    except DataError:
        return [CheckedFile("record", str(root / lock), "changed") for lock in LOCKS if _damaged_lock(root / lock)]
    at = next((path for path in EXPORTS if folder.resolve() == (root / path).resolve()), None)
    digest = md5_folder(folder) if folder.is_dir() else ""
    known = outs.get(at) if at else next((outs[p] for p in EXPORTS if p in outs and outs[p].md5 == digest), None)
    same = known is not None and digest == known.md5
    if not same and at is None:
        return [] if commit_of(folder, root) else [CheckedFile("record", str(folder), "missing")]
    if known is None:
        lock = dict(zip(EXPORTS, LOCKS, strict=True))[at]
        return [CheckedFile("record", f"{root / lock}", "missing")]
    found = []
    if same:
        found.append(CheckedFile("record", f"{root / known.lock}", "ok"))
    elif intact:
        found += [CheckedFile("record", path, "changed") for path in _differing(folder, root, known)]
    covered = [*EXPORTS, *(top for link, top in {**FOLDERS, **CHAT_FOLDERS}.items() if link != "reports")]
    before = LOCKS[: LOCKS.index(known.lock) + 1]  # what later pipelines made has nothing to do with this export
    for out in outs.values():
        if out.lock in before and not any(_within(out.path, top) for top in covered):
            found.append(CheckedFile("reports", str(root / out.path), _state_md5(root / out.path, out.md5)))
    return found


def _damaged_lock(path: Path) -> bool:
    try:
        read_lock(path)
    except DataError:
        return True
    return False


def _within(path: str, top: str) -> bool:
    return path == top or path.startswith(f"{top}/")


def _differing(folder: Path, root: Path, out: Out) -> list[str]:
    """Files of the export that differ from what DVC recorded: their proof was written again.

    It is the proof itself if DVC's list of the files is gone.
    """
    try:
        listing = Cache(root).listing(out) or {}
    except DataError:  # the folder is not a project of DVC's
        listing = {}
    here = {f"{out.path}/{p.relative_to(folder).as_posix()}": p for p in folder.rglob("*") if p.is_file()}
    names = [
        n for n in sorted({*here, *listing}) if n not in here or n not in listing or md5_file(here[n]) != listing[n]
    ]
    return [str(root / n) for n in names] if listing else [f"{folder}/{PROOF}"]


def _state_md5(path: Path, md5: str) -> State:
    if not path.exists():
        return "missing"
    if md5.endswith(".dir"):
        return "ok" if path.is_dir() and md5_folder(path) == md5 else "changed"
    return "ok" if path.is_file() and md5_file(path) == md5 else "changed"


def repair(folder: str | Path, root: str | Path = ".") -> Repair:
    """Restores every damaged file from DVC's cache or from git. What neither has is removed, so that DVC builds it.

    Before there is an export, the outs in `dvc.lock` of the stages that ran are checked. An object of the cache that
    does not match its name is removed: DVC trusts its cache and would restore the damage.

    Raises:
        DataError: if `dvc.lock`, which says what the recorded bytes are, is damaged or missing.
    """
    folder, root = Path(folder), Path(root)
    done, outs = Repair(), recorded_outs(root)
    if not outs:
        raise DataError(
            f"{root / LOCK} is missing: it says what the recorded bytes are. Restore it from git, or run `dvc repro`"
        )
    cache = Cache(root)
    damaged = {f.path: f for f in verify(folder, root) if f.broken} if os.path.exists(folder / PROOF) else {}
    for out in outs.values():
        for f in _damaged(root, out, cache, known=bool([p for p in damaged if _within(p, str(root / out.path))])):
            damaged.setdefault(f.path, f)
    for file in damaged.values():
        name = Path(os.path.relpath(file.path, root)).as_posix()
        out = out_of(outs, name)
        if out is None or file.state == "added":
            done.left.append(file)
        else:
            _restore(root, name, out, cache, done)
    return done


def _damaged(root: Path, out: Out, cache: Cache, known: bool) -> list[CheckedFile]:
    """Files of an out that differ from `dvc.lock`.

    It is the folder itself if DVC's list of its files is lost, unless the chain names them.

    Args:
        known: whether the chain found damage in this out already.
    """
    path = root / out.path
    if _state_md5(path, out.md5) != "changed":
        return []
    if not out.md5.endswith(".dir") or not path.is_dir():
        return [CheckedFile("record", str(path), "changed")]
    listing = cache.listing(out)
    if listing is None:
        return [] if known else [CheckedFile("record", str(path), "changed")]
    here = {p.relative_to(root).as_posix(): p for p in path.rglob("*") if p.is_file()}
    states = {n: "missing" if n not in here else "added" if n not in listing else "changed" for n in {*here, *listing}}
    bad = [n for n in sorted(states) if states[n] != "changed" or md5_file(here[n]) != listing[n]]
    return [CheckedFile("record", str(root / n), states[n]) for n in bad]


def _restore(root: Path, name: str, out: Out, cache: Cache, done: Repair) -> None:
    listing, path = cache.listing(out), root / name
    if listing is None:
        _discard(cache, out.md5, done)
    md5 = (listing or {}).get(name)
    if md5 and path.is_file() and md5_file(path) == md5:
        done.stale.append(name)
        return
    good = cache.good(md5) if md5 else None
    committed = _committed(root, name, md5) if md5 and not good else None
    if md5 and not good:
        _discard(cache, md5, done)
    _remove(path)  # DVC assumes that a file of the same size and time is the one that it knows
    if good is None and committed is None:
        done.rebuild.setdefault(out.stage, []).append(name)
        return
    with open(good, "rb") if good else io.BytesIO(committed) as source, atomic_write(path) as target:
        shutil.copyfileobj(source, target)
    done.restored.append(name)


def _discard(cache: Cache, md5: str, done: Repair) -> None:
    path = cache.path(md5)
    if path.exists():
        _remove(path)
        done.discarded.append(str(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _committed(root: Path, name: str, md5: str) -> bytes | None:
    """The committed bytes of a file, if they are the recorded ones."""
    done = subprocess.run(["git", "show", f"HEAD:./{name}"], cwd=root, capture_output=True, check=False)
    same = done.returncode == 0 and hashlib.md5(done.stdout, usedforsecurity=False).hexdigest() == md5
    return done.stdout if same else None
