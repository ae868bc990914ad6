"""Raw files divided into units of work, each of them read by a pure function.

Guarantees: the units of a plan, read in any order and put together in the order of the plan, give what each file gives
when it is read in one piece, for every `unit_bytes`: the same texts, reasons and offsets, once each. A unit is a few
numbers and names, so it can be sent to any process that sees the folder.

What is divided: zip archives by members, and each format whose reader can `divide` unless it is compressed. Everything
else is one unit per file, and streams.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.config.formats import FORMAT_NAMES
from foundry.data.read import json_records, plain_text, tables, webpage  # noqa: F401  # they fill READERS
from foundry.data.read.archives import open_zip, read_tar, shown_member, zip_members
from foundry.data.read.encoding import Utf8, wide_encoding
from foundry.data.read.kinds import (
    HEAD,
    archive_of,
    binary_kind,
    format_by_content,
    format_of,
    is_page,
    split_compression,
    suffix_of,
)
from foundry.data.read.readers import READERS, WHOLE, Range, ranges_by_size
from foundry.data.read.records import Bad, Document, DocumentBuilder
from foundry.data.read.streams import GrowthLimit, Limits, Stream, damage, on_disk, unpack
from foundry.utils.raw_manifest import RawSource

__all__ = ["Limits", "Unit", "plan_units", "read_unit"]


@dataclass(frozen=True)
class Unit:
    """A part of the raw data.

    Attributes:
        source, file: positions in the sources of the manifest and in the files of that source.
        member: for an archive, the name or pattern of its members (None: all text files); else None.
        format: one of `FORMAT_NAMES`; tar or zip for an archive, whose members have formats of their own.
        start, stop: bytes of JSON lines, row groups of parquet, record batches of Arrow, positions among the wanted
            members of a zip archive in the order of their names; (0, None) is the file in one piece.
    """

    source: int
    file: int
    member: str | None
    format: str
    start: int
    stop: int | None


def plan_units(raw: Path, sources: Sequence[RawSource], unit_bytes: int, limits: Limits) -> list[Unit]:
    """The units of every file, in the order source, file, start.

    Raises:
        DataError: if a file is missing, is not what its name says, or is an archive that is refused.
    """
    units = []
    for s, source in enumerate(sources):
        for f, file in enumerate(source.files):
            path, shown = raw / file.path, file.path
            with damage(shown):
                archive = archive_of(path.name)
                format = archive[0] if archive else _format(path.name, source.format, shown, lambda p=path: _head(p))
                for start, stop in _ranges(path, shown, format, source, unit_bytes, limits):
                    units.append(Unit(s, f, source.member if archive else None, format, start, stop))
    return units


def _ranges(path: Path, shown: str, format: str, source: RawSource, unit_bytes: int, limits: Limits) -> list[Range]:
    if format == "zip":
        with open_zip(path) as archive:
            growth = GrowthLimit(shown, path.stat().st_size, limits)
            members = zip_members(archive, shown, source.member, source.format, growth)
        return ranges_by_size([m.file_size for m in members], unit_bytes)
    if format == "tar" or split_compression(path.name)[1]:
        return WHOLE
    reader = READERS[format]
    if not reader.divide or (source.encoding and not reader.from_disk):  # offsets would be those of another encoding
        return WHOLE
    return reader.divide(path, shown, unit_bytes, limits)


def _format(name: str, format: str, shown: str, head: Callable[[], bytes]) -> str:
    """The format that the user names, else that of the suffix, else that of the first bytes."""
    if format != "auto":
        return format
    if found := format_of(name) or format_by_content(head()):
        return found
    raise DataError(
        f"{shown}: neither the suffix {suffix_of(split_compression(name)[0])!r} nor the content shows a format; set "
        f"`format:` to one of {', '.join(sorted(FORMAT_NAMES))}"
    )


def _head(path: Path) -> bytes:
    growth = GrowthLimit(path.name, path.stat().st_size, Limits())
    with open(path, "rb") as f:
        return unpack(f, split_compression(path.name)[1], path.name, growth).peek(HEAD)


def read_unit(raw: Path, sources: Sequence[RawSource], unit: Unit, limits: Limits) -> Iterator[Document | Bad]:
    """The records of a unit, numbered from 0; offsets are those of the decompressed file or member.

    Raises:
        DataError: if the file or archive is damaged, refused, or lacks a column or member.
        ConfigError: if the template of the source is not understood.
    """
    source = sources[unit.source]
    shown = source.files[unit.file].path
    path = raw / shown
    builder = DocumentBuilder(source.text, source.cut, limits, source.encoding, source.fields)
    compression = (archive_of(path.name) or split_compression(path.name))[1]
    with damage(shown):
        growth = GrowthLimit(shown, path.stat().st_size, limits)
        if unit.format == "zip":
            yield from _numbered(_read_zip(path, shown, unit, source.format, builder))
        elif unit.format != "tar" and not compression and READERS[unit.format].from_disk:
            yield from READERS[unit.format].read(path, shown, builder, unit.start, unit.stop)
        else:
            with open(path, "rb") as f:
                f.seek(max(0, unit.start - 1))
                stream = unpack(f, compression, shown, growth)
                if unit.format == "tar":
                    inner = GrowthLimit(shown, growth.size, limits)
                    yield from _numbered(_read_tar(stream, shown, unit, source.format, builder, inner))
                else:
                    part = Range(unit.start, unit.stop)
                    yield from _read(stream, shown, unit.format, builder, source.format != "auto", part)


def _read(
    stream: Stream, shown: str, format: str, builder: DocumentBuilder, trusted: bool, part: Range = WHOLE[0]
) -> Iterator[Document | Bad]:
    """The records of a file or member, from its decompressed bytes.

    Args:
        trusted: whether the user named the format.
    """
    reader = READERS[format]
    if reader.from_disk:
        with on_disk(stream) as path:
            yield from reader.read(path, shown, builder)
        return
    head = stream.peek(HEAD) if part.start == 0 else b""
    _refuse_other(head, shown, format, trusted)
    encoding = wide_encoding(head[:4])
    if builder.encoding:
        _refuse_mark(head, shown, builder.encoding)
        encoding = builder.encoding
    text: Any = Utf8(stream, encoding) if encoding else stream
    items = reader.read(text, shown, builder, *(part if reader.divide else ()))
    if not encoding:
        yield from items
        return
    for item in items:  # whose offsets are those of the UTF-8 that was made of the bytes
        if isinstance(item, Bad):
            yield replace(item, offset=None)
        else:
            yield replace(item, repaired=item.repaired or "\ufffd" in item.text)


def _refuse_mark(head: bytes, shown: str, encoding: str) -> None:
    """Refuses a byte order mark of another encoding than the one that the source names."""
    mark = "utf-8" if head.startswith(b"\xef\xbb\xbf") else wide_encoding(head[:4])
    if mark and not codecs.lookup(encoding).name.startswith(mark):
        raise DataError(
            f"{shown} begins with the byte order mark of {mark.upper()}, but its source has encoding: {encoding}; "
            "leave `encoding:` out for it, in a source of its own if the other files need it"
        )


def _refuse_other(head: bytes, shown: str, format: str, trusted: bool) -> None:
    """Refuses content that is not a text, or is a page where another format is expected."""
    if kind := binary_kind(head):
        raise DataError(
            f"{shown} contains {kind} data, not {format} as its name or `format:` says; give it the suffix of its "
            "content"
        )
    if not trusted and format != "html" and is_page(head):
        raise DataError(
            f"{shown} contains an HTML page, not {format}; it may be an error page of the server. Fetch it again, or "
            f"set `format: html` (`format: {format}` to read it as it is)"
        )


def _read_zip(path: Path, shown: str, unit: Unit, format: str, builder: DocumentBuilder) -> Iterator[Document | Bad]:
    size = path.stat().st_size
    with open_zip(path) as archive:
        members = zip_members(archive, shown, unit.member, format, GrowthLimit(shown, size, builder.limits))
        inner = GrowthLimit(shown, size, builder.limits)
        for info in members[unit.start : unit.stop]:
            with archive.open(info) as f:
                yield from _read_member(f, shown, info.filename, format, builder, inner)


def _read_tar(
    stream: Stream, shown: str, unit: Unit, format: str, builder: DocumentBuilder, inner: GrowthLimit
) -> Iterator[Document | Bad]:
    for name, open_member in read_tar(stream, shown, unit.member, format):
        with open_member() as f:
            yield from _read_member(f, shown, name, format, builder, inner)


def _read_member(
    f: Any, archive: str, name: str, format: str, builder: DocumentBuilder, growth: GrowthLimit
) -> Iterator[Document | Bad]:
    shown = shown_member(archive, name)
    with damage(shown):
        stream = unpack(f, split_compression(name)[1], shown, growth)
        found = _format(name, format, shown, lambda: stream.peek(HEAD))
        yield from _read(stream, shown, found, builder, format != "auto")


def _numbered(items: Iterator[Document | Bad]) -> Iterator[Document | Bad]:
    """The items of several members, numbered consecutively."""
    for record, item in enumerate(items):
        yield replace(item, record=record)
