"""Archives (zip, wheel, tar and packed tars) read in one pass, member by member, never unpacked to disk.

An archive with a member that leaves its folder, is a link or a device, or that stands twice is refused as a whole: it was
not made by somebody who publishes text.
"""

from __future__ import annotations

import difflib
import fnmatch
import logging
import re
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from foundry.config import DataError
from foundry.data.streams import PACKED, Guard, Limits, decompress

ZIPS = (".zip", ".whl")
_TARS = {".tgz": ".tar.gz", ".tbz2": ".tar.bz2", ".txz": ".tar.xz"}
_TEXT = (
    ".txt", ".text", ".md", ".markdown", ".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".feather", ".html", ".htm",
)  # fmt: skip


def is_archive(name: str) -> bool:
    return name.lower().endswith((*ZIPS, ".tar", *_TARS, *(f".tar{p}" for p in PACKED)))


def is_text(name: str) -> bool:
    """Whether a file is taken where none is named: a known text suffix, not hidden, no README or LICENSE beside the data."""
    path = PurePosixPath(name.lower())
    bare = path.name.removesuffix(path.suffix) if path.suffix in PACKED else path.name
    return (
        bare.endswith(_TEXT)
        and not any(p.startswith((".", "__macosx")) for p in path.parts)
        and not path.name.startswith(("readme", "license", "licence", "copying", "changelog", "package.json"))
        and not path.parts[0].endswith((".dist-info", ".egg-info"))
    )


def read_members(path: Path, pattern: str | None, shown: str, limits: Limits) -> Iterator[tuple[str, Any, int]]:
    """(name, stream, bytes) of the wanted members, in the archive's order; each stream is read before the next comes.

    Args:
        pattern: a member's name or a glob (`*` matches `/` as well); None: every text file.

    Raises:
        DataError: for an archive that is refused or lacks the member; the nearest names are told.
    """
    members = _read_zip if path.suffix.lower() in ZIPS else _read_tar
    names: list[str] = []
    found = 0
    for name, stream, size in members(path, shown, limits, names):
        wanted = is_text(name) if pattern is None else name == pattern or fnmatch.fnmatchcase(name, pattern)
        if wanted and is_archive(name):
            logging.getLogger("foundry").warning("%s: the archive %s inside it is passed over", shown, name)
        elif wanted:
            found += 1
            yield name, stream, size
    if not found:
        near = difflib.get_close_matches(pattern or "", names, n=3, cutoff=0.3) or names[:3]
        what = f"has no member {pattern!r}" if pattern else "has no member that is a text file; name one with `member:`"
        raise DataError(f"{shown} {what}; nearest: {', '.join(near) or 'it is empty'}")


def _check(name: str, kind: str, names: list[str], seen: set[str], shown: str) -> None:
    parts = re.split(r"[/\\]", name)
    if name.startswith(("/", "\\")) or ".." in parts or re.match(r"[A-Za-z]:", name) or "\0" in name:
        raise DataError(f"{shown} is refused: its member {name!r} would leave the folder it is unpacked to")
    if kind:
        raise DataError(f"{shown} is refused: its member {name!r} is a {kind}, not a file")
    if name in seen:
        raise DataError(f"{shown} is refused: its member {name!r} stands in it twice")
    seen.add(name)
    names.append(name)


def _read_zip(path: Path, shown: str, limits: Limits, names: list[str]) -> Iterator[tuple[str, Any, int]]:
    seen: set[str] = set()
    try:
        with zipfile.ZipFile(path) as archive:
            infos = [i for i in archive.infolist() if not i.is_dir()]
            for info in infos:
                mode = info.external_attr >> 16
                # The name as it stands in the file: zipfile cleans it silently.
                _check(info.orig_filename, "link" if stat.S_ISLNK(mode) else "", names, seen, shown)
            for info in infos:
                if info.flag_bits & 1 and is_text(info.filename):
                    raise DataError(f"{shown} is refused: its member {info.filename!r} is encrypted")
                with archive.open(info) as f:
                    yield (
                        info.filename,
                        Guard(f, max(info.compress_size, 1), f"{shown}!{info.filename}", limits),
                        info.file_size,
                    )
    except (zipfile.BadZipFile, NotImplementedError) as e:
        raise DataError(
            f"{shown} is damaged or not what its name says ({type(e).__name__}: {e}); fetch or make it again"
        ) from None
    except RuntimeError as e:
        if "password" not in str(e):
            raise
        raise DataError(f"{shown} is refused: {e}") from None


def _read_tar(path: Path, shown: str, limits: Limits, names: list[str]) -> Iterator[tuple[str, Any, int]]:
    name = path.name.lower()
    name = next((name.removesuffix(short) + long for short, long in _TARS.items() if name.endswith(short)), name)
    seen: set[str] = set()
    with open(path, "rb") as f:
        stream, _ = decompress(f, name, path.stat().st_size, shown, limits)
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for info in archive:
                    if info.isdir():
                        continue
                    kind = "link" if info.issym() or info.islnk() else "" if info.isfile() else "device"
                    _check(info.name, kind, names, seen, shown)
                    yield info.name, archive.extractfile(info), info.size
                while stream.read(1 << 20):  # a damaged end of the compressed stream must be seen
                    pass
        except tarfile.TarError as e:
            raise DataError(
                f"{shown} is damaged or not what its name says ({type(e).__name__}: {e}); fetch or make it again"
            ) from None
