"""The user's own files: what a path or glob of a `file:` source names, below corpus/."""

from __future__ import annotations

import glob
import logging
import os
from collections import Counter
from pathlib import Path

from foundry.config import DataError
from foundry.data.fetch.store import Fetched
from foundry.data.read.kinds import archive_of, format_of, suffix_of
from foundry.utils.inputs import refuse_linked

log = logging.getLogger(__name__)


def find_files(pattern: str) -> list[Fetched]:
    """The files below the project that a glob matches; for a folder, all files below it whose suffix is known.

    Names are relative to the last folder before the first wildcard. Hidden files and the README of the folder itself
    are left out.

    Raises:
        ConfigError: if a file is behind a linked folder, where DVC does not look.
        DataError: if nothing matches, with what is nearby; if a file may not be read or its name is not UTF-8.
    """
    root = Path.cwd()  # whose own name may contain wildcards
    full = root / pattern
    if full.is_dir():
        base = full
        matches = _below(full, root, pattern)
    elif full.exists():
        base, matches = full.parent, [full]
    else:
        parts = Path(pattern).parts
        first = next((i for i, p in enumerate(parts) if glob.has_magic(p)), len(parts) - 1)
        base = root.joinpath(*parts[:first])
        matches = [root / p for p in glob.glob(str(Path(*parts)), root_dir=root, recursive=True)]
    matches = sorted(p for p in matches if p.is_file())
    if not matches:
        raise DataError(f"file:{pattern} matches no file: {full}; {_nearby(base)}")
    refuse_linked(matches, root, f"file:{pattern}")
    if unreadable := [p for p in matches if not os.access(p, os.R_OK)]:
        raise DataError(f"file:{pattern}: no permission to read {unreadable[0]}")
    for path in matches:
        name = os.fsencode(path.relative_to(root))
        try:
            name.decode()
        except UnicodeDecodeError:
            raise DataError(f"file:{pattern}: the name of the file {name!r} is not UTF-8; rename it") from None
    return [Fetched(p, p.relative_to(base).as_posix()) for p in matches]


def _below(folder: Path, root: Path, pattern: str) -> list[Path]:
    """All files below a folder that are to be read, by their suffixes; the log names the others.

    A linked folder there is refused, not followed: it may lead anywhere.
    """
    found: list[Path] = []
    skipped: Counter[str] = Counter()
    for here, folders, names in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        refuse_linked((Path(here, f, "*") for f in folders), root, f"file:{pattern}")
        for path in (Path(here, name) for name in names if not name.startswith(".")):
            if path.parent == folder and path.name.lower().startswith("readme"):
                continue
            if archive_of(path.name) or format_of(path.name):
                found.append(path)
            else:
                skipped[suffix_of(path.name) or path.name] += 1
    if skipped:
        suffixes = ", ".join(f"{ascii(suffix)[1:-1]} ({n})" for suffix, n in sorted(skipped.items())[:8])
        log.warning(
            "file:%s: %s skipped, because the suffix is that of no known format: %s%s. To read such files, name them "
            "by a pattern and set their `format:`",
            *(pattern, "1 file is" if skipped.total() == 1 else f"{skipped.total()} files are"),
            *(suffixes, ", …" * (len(skipped) > 8)),
        )
    return found


def _nearby(folder: Path) -> str:
    while not folder.is_dir():
        folder = folder.parent
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir() if not p.name.startswith("."))
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{folder} contains {', '.join(names[:8]) + more if names else 'nothing'}"
