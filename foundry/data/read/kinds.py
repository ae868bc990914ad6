"""What a file is, by its name and by its first bytes; the table is `foundry.config.formats`."""

from __future__ import annotations

import re
from pathlib import Path

from foundry.config.formats import ARCHIVES, COMPRESSED_TAR, COMPRESSIONS, FORMATS, UNREADABLE

HEAD = 4096  # first bytes that are looked at

_FORMATS = {suffix: kind.name for kind in FORMATS for suffix in kind.suffixes}
_COMPRESSIONS = {suffix: kind.name for kind in COMPRESSIONS for suffix in kind.suffixes}
_ARCHIVES = {suffix: kind.name for kind in ARCHIVES for suffix in kind.suffixes}
_KINDS = (*FORMATS, *COMPRESSIONS, *ARCHIVES, *UNREADABLE)
_BY_NAME = {kind.name: kind for kind in _KINDS}
OPENED = frozenset((*_COMPRESSIONS.values(), *_ARCHIVES.values()))  # what is opened whatever `format:` says


def suffix_of(name: str) -> str:
    return Path(name).suffix.lower()


def split_compression(name: str) -> tuple[str, str | None]:
    """(name without the suffix of a compression, that compression or None)."""
    suffix = suffix_of(name)
    return (name[: -len(suffix)], _COMPRESSIONS[suffix]) if suffix in _COMPRESSIONS else (name, None)


def archive_of(name: str) -> tuple[str, str | None] | None:
    """(`tar` or `zip`, its compression or None); None for what is not an archive by its name."""
    if compression := COMPRESSED_TAR.get(suffix_of(name)):
        return "tar", compression
    below, compression = split_compression(name)
    archive = _ARCHIVES.get(suffix_of(below))
    return (archive, compression) if archive and (archive == "tar" or not compression) else None


def format_of(name: str) -> str | None:
    """The format of a file, compressed or not; None if its suffix says none."""
    return _FORMATS.get(suffix_of(split_compression(name)[0]))


def outer_kind(name: str) -> str | None:
    """The kind of a file as it is published: a compression, an archive or a format; None if its suffix says nothing."""
    suffix = suffix_of(name)
    return next((t[suffix] for t in (COMPRESSED_TAR, _COMPRESSIONS, _ARCHIVES, _FORMATS) if suffix in t), None)


def has_magic(name: str) -> bool:
    """Whether the files of a kind can be distinguished from text by their first bytes."""
    return bool(_BY_NAME[name].magic)


def begins_as(head: bytes, name: str) -> bool:
    """Whether a file that begins with `head` can be of a kind that has a magic number."""
    return _matches(_BY_NAME[name].magic, head)


def binary_kind(head: bytes) -> str | None:
    """The kind of a file that is certainly not text, by its first bytes."""
    return next((k.name for k in _KINDS if _matches(k.magic, head) and (not k.ambiguous or b"\0" in head)), None)


def is_page(head: bytes) -> bool:
    """Whether the first bytes are those of an HTML page."""
    return _matches(_BY_NAME["html"].looks, head)


def format_by_content(head: bytes) -> str | None:
    """The format that the first bytes of a file show, where they are unmistakable."""
    return next((k.name for k in FORMATS if _matches(k.magic or k.looks, head)), None)


def _matches(pattern: bytes, head: bytes) -> bool:
    return bool(pattern) and re.match(pattern, head, re.DOTALL) is not None
