"""Members of tar and zip archives, read in place: nothing is ever written under a name that an archive gives.

Guarantees: every wanted member comes once, in an order that depends only on the archive; a name that leaves the folder,
a link, a device, an encrypted member or a name that occurs twice is refused; nested archives are skipped, with a line
in the log. A tar file is read forward in one pass; it must have its end mark, and nothing after it.

Traps: `tarfile` takes a damaged header beyond the first for the end of the archive, and keeps every header it saw;
`zipfile` gives the last of two members of one name.
"""

from __future__ import annotations

import difflib
import logging
import re
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from foundry.config import DataError
from foundry.data.read.kinds import archive_of, format_of
from foundry.data.read.streams import CHUNK, GrowthLimit

log = logging.getLogger(__name__)

_NO_DOCUMENTS = re.compile(r"(readme|licen[cs]e|copying|notice|changelog)\b|package(-lock)?\.json$", re.IGNORECASE)
_NO_FOLDERS = re.compile(r"\..*|__MACOSX|.*\.(dist|egg)-info", re.DOTALL)


def wanted(name: str, pattern: str | None, format: str) -> bool:
    """Whether a member is to be read: one that the pattern matches or, without a pattern, every file of a known format.

    `*` matches across folders, `**/` also matches no folder. Without a pattern READMEs, licences and hidden files are
    left out, and a `format` other than auto keeps only the files with its suffixes.
    """
    if pattern is not None:
        return name == pattern or fnmatchcase(name, pattern) or fnmatchcase(name, pattern.replace("**/", ""))
    *folders, last = PurePosixPath(name).parts or ("",)
    if any(_NO_FOLDERS.fullmatch(p) for p in folders) or last.startswith(".") or _NO_DOCUMENTS.match(last):
        return False
    kind = format_of(last)
    return kind is not None and format in ("auto", kind)


class _Check:
    """What the members of one archive must satisfy, and which of them are read."""

    def __init__(self, shown: str, pattern: str | None, format: str) -> None:
        self.shown, self.pattern, self.format = shown, pattern, format
        self.seen: set[str] = set()
        self.skipped: list[str] = []  # the first names that are not read
        self.found = 0

    def take(self, name: str, fault: str) -> bool:
        """Whether to read a member; `fault` says why it must not be read, if it must not."""
        chosen = wanted(name, self.pattern, self.format)
        if not chosen and self.pattern is not None:
            self._skip(name)
            return False
        parts = name.replace("\\", "/").split("/")
        if ".." in parts or name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
            fault = "leaves the folder"
        elif name in self.seen:
            fault = "occurs twice"
        if fault:
            raise DataError(
                f"{self.shown}: the member {name!r} {fault}; such an archive is not read. Name the members to read "
                "with `member:`, or make it again"
            )
        self.seen.add(name)
        if archive_of(name):
            log.warning("%s: the archive %s inside it is skipped; extract it to read it", self.shown, name)
            chosen = False
        if not chosen:
            self._skip(name)
        self.found += chosen
        return chosen

    def _skip(self, name: str) -> None:
        if len(self.skipped) < 10_000:
            self.skipped.append(name)

    def finish(self) -> None:
        if self.found:
            return
        asked = self.pattern if self.pattern is not None else "a text file"
        near = difflib.get_close_matches(asked, self.skipped, n=3, cutoff=0.3) or self.skipped[:3]
        raise DataError(
            f"{self.shown} has no member {asked!r} that can be read; "
            f"{'nearest: ' + ', '.join(map(repr, near)) if near else 'it is empty'}. Set `member:` to fit"
        )


def zip_members(
    archive: zipfile.ZipFile, shown: str, pattern: str | None, format: str, growth: GrowthLimit
) -> list[zipfile.ZipInfo]:
    """The members to read, by name.

    Raises:
        DataError: for a member that is refused, if none is to be read, or if they grow to more than `growth` allows.
    """
    check, chosen = _Check(shown, pattern, format), []
    for info in archive.infolist():
        mode = info.external_attr >> 16
        fault = "is encrypted" if info.flag_bits & 1 else ""
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            fault = "is a link" if stat.S_ISLNK(mode) else "is a device"
        if (not info.is_dir() or fault) and check.take(info.filename, fault):
            chosen.append(info)
            growth.add(info.file_size)
    check.finish()
    return sorted(chosen, key=lambda i: i.filename)


class _Header(tarfile.TarInfo):
    """A header whose damage is an error wherever it is in the archive."""

    @classmethod
    def frombuf(cls, buf: bytes, encoding: str, errors: str) -> tarfile.TarInfo:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.EOFHeaderError:
            raise
        except tarfile.HeaderError as e:
            raise tarfile.ReadError(f"{e}, where a header or the end mark should be") from None


def read_tar(stream: Any, shown: str, pattern: str | None, format: str) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, function that opens it) of the members to read, in the order of the archive.

    Raises:
        DataError: for a member that is refused, or if none is to be read.
        tarfile.TarError: for a damaged archive.
    """
    check = _Check(shown, pattern, format)
    with tarfile.open(fileobj=stream, mode="r|", tarinfo=_Header) as archive:
        while (info := archive.next()) is not None:
            archive.members.clear()
            fault = ""
            if not info.isreg():
                fault = "is a link" if info.issym() or info.islnk() else "is a device"
            elif info.issparse():
                fault = "is a sparse file"
            if (not info.isdir() or ".." in info.name.split("/")) and check.take(info.name, fault):
                yield info.name, lambda info=info: archive.extractfile(info)
        rest: Any = archive.fileobj
        while chunk := rest.read(CHUNK):
            if chunk.strip(b"\0"):
                raise tarfile.ReadError("more data follow its end mark")
    check.finish()


def shown_member(shown: str, name: str) -> str:
    """`archive!member`, with the bytes of the name that are not UTF-8 replaced."""
    return f"{shown}!{name.encode('utf-8', 'surrogateescape').decode('utf-8', 'replace')}"


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    with open(path, "rb") as f, zipfile.ZipFile(f) as archive:
        yield archive
