"""What DVC recorded: each `dvc.lock`, and the objects of its cache. Both are read as files, without importing DVC.

The name of an object is the MD5 of its content. The object of a folder is the list of its files with their MD5; its
name ends with `.dir`.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import ConfigError, DataError, parse_yaml
from foundry.config.pipelines import LOCKS, PIPELINES

LOCK = "dvc.lock"


@dataclass(frozen=True)
class Out:
    """An output of a stage, as a `dvc.lock` records it; the `md5` of a folder ends with `.dir`.

    Attributes:
        stage: as DVC's command line calls it.
        lock: the file that records it.
    """

    stage: str
    path: str
    md5: str
    lock: str = LOCK


def md5_file(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def md5_folder(folder: Path) -> str:
    """The MD5 that DVC gives a folder: that of the list of its files with their MD5."""
    rows = [{"md5": md5_file(p), "relpath": p.relative_to(folder).as_posix()} for p in folder.rglob("*") if p.is_file()]
    rows.sort(key=lambda r: r["relpath"])
    return hashlib.md5(json.dumps(rows).encode(), usedforsecurity=False).hexdigest() + ".dir"


def read_lock(path: Path) -> dict[str, Any]:
    """The stages of a `dvc.lock`; none if the file does not exist.

    Raises:
        DataError: if the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return parse_lock(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read ({e}): restore it from git, or remove it and run `dvc repro`") from None


def parse_lock(text: str, origin: str) -> dict[str, Any]:
    """The stages in the text of a `dvc.lock`.

    Raises:
        DataError: if the text is damaged; the message names `origin`.
    """
    try:
        stages = parse_yaml(text, origin)["stages"]
        for stage in stages.values():
            _ = (stage.get("params") or {}).items()
            for entry in (*stage.get("outs", []), *stage.get("deps", [])):
                _ = entry["path"] + entry["md5"]
    except (ConfigError, KeyError, TypeError, AttributeError) as e:
        what = str(e) if isinstance(e, ConfigError) else f"{origin} is not a lock file of DVC ({type(e).__name__}: {e})"
        raise DataError(f"{what}: restore it from git, or remove it and run `dvc repro`") from None
    return stages


def recorded_outs(root: Path) -> dict[str, Out]:
    """{path: out} of every `dvc.lock` of the project.

    Raises:
        DataError: if one of them is damaged.
    """
    found = {}
    for pipeline, lock in zip(PIPELINES.values(), LOCKS, strict=True):
        prefix = "" if lock == LOCK else f"{pipeline}:"
        for name, stage in read_lock(root / lock).items():
            found |= {o["path"]: Out(prefix + name, o["path"], o["md5"], lock) for o in stage.get("outs", [])}
    return found


def out_of(outs: dict[str, Out], path: str) -> Out | None:
    """The out that contains a path of the project, or is that path; None if there is none."""
    return next((outs[p] for p in (path, *(q.as_posix() for q in Path(path).parents)) if p in outs), None)


class Cache:
    """The project's DVC cache."""

    def __init__(self, root: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-m", "dvc", "cache", "dir"], cwd=root, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise DataError(f"`dvc cache dir` failed: {(done.stderr or done.stdout).strip()[-300:]}")
        self.folder = root / done.stdout.strip()  # which is absolute

    def path(self, md5: str) -> Path:
        """The place of an object, which may be missing."""
        return self.folder / "files" / "md5" / md5[:2] / md5[2:]

    def good(self, md5: str) -> Path | None:
        """The object, if it exists and its content fits its name; else None."""
        path = self.path(md5)
        return path if path.is_file() and md5_file(path) == md5.removesuffix(".dir") else None

    def listing(self, out: Out) -> dict[str, str] | None:
        """{path in the project: md5} of an out's files; None if the list of a folder is missing or damaged."""
        if not out.md5.endswith(".dir"):
            return {out.path: out.md5}
        if (path := self.good(out.md5)) is None:
            return None
        return {f"{out.path}/{row['relpath']}": row["md5"] for row in json.loads(path.read_text(encoding="utf-8"))}
