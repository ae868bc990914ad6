"""Files of this machine: what a path or glob of a `file:` source names."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from foundry.config import DataError
from foundry.data.store import Fetched

PACKED = (".gz", ".zst", ".bz2", ".xz")
KNOWN = (
    ".txt", ".text", ".md", ".markdown", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".html",
    ".htm", ".zip", ".tar", ".tgz", ".tbz2", ".txz",
)  # fmt: skip


def find_files(pattern: str) -> list[Fetched]:
    """The files of this machine that a glob matches; of a folder, all files below it whose suffix is a known text
    format.

    Names are relative to the last folder before the first wildcard. Hidden files and a folder's own README are left
    out.

    Raises:
        DataError: if nothing matches, with what lies nearby.
    """
    wanted = Path(pattern).expanduser()
    root = Path(wanted.anchor) if wanted.is_absolute() else Path.cwd()  # whose own name may hold wildcards
    full = root / wanted
    if full.is_dir():
        base = full
        matches = [p for p in full.rglob("*") if _is_text(p, full)]
    elif full.exists():
        base, matches = full.parent, [full]
    else:
        parts = wanted.relative_to(wanted.anchor).parts
        first = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
        base = root.joinpath(*parts[:first])
        matches = [root / p for p in glob.glob(str(Path(*parts)), root_dir=root, recursive=True)]
    matches = sorted(p for p in matches if p.is_file())
    if not matches:
        raise DataError(f"file:{pattern} matches no file: {full}; {_nearby(base)}")
    if unreadable := [p for p in matches if not os.access(p, os.R_OK)]:
        raise DataError(f"file:{pattern}: no permission to read {unreadable[0]}")
    return [Fetched(p, p.relative_to(base).as_posix()) for p in matches]


def _is_text(path: Path, folder: Path) -> bool:
    below = path.relative_to(folder).parts
    name = Path(path.name.lower())
    suffix = Path(name.stem).suffix if name.suffix in PACKED else name.suffix
    return (
        not any(p.startswith(".") for p in below)
        and suffix in KNOWN
        and not (len(below) == 1 and name.name.startswith("readme"))
    )


def _nearby(folder: Path) -> str:
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{folder} holds {', '.join(names[:8]) + more if names else 'nothing'}"
