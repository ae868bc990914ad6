"""Raw files cut into units of work, each of them read by a pure function.

Guarantees: the units of a plan, read in any order and put together in the plan's, give what the files give when each is
read as a whole, for every `unit_bytes`: the same texts, reasons and offsets, once each. A unit is a few numbers and
names, so it travels to any process that sees the folder.

What is cut: plain JSON lines at bytes, parquet at row groups, Arrow files at record batches, zip archives at members.
Everything else is one unit a file, and streams.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.data.manifest import RawSource
from foundry.data.read.archives import open_zip, read_tar, shown_member, zip_members
from foundry.data.read.encoding import Utf8, wide_encoding
from foundry.data.read.formats import Bad, Document, Recipe, read_json, read_jsonl, read_page, read_text
from foundry.data.read.streams import Limits, Meter, Stream, damage, on_disk, unpack
from foundry.data.read.suffixes import FORMATS, archive_of, format_of, packing_of, suffix_of
from foundry.data.read.tables import arrow_units, cut, parquet_units, read_arrow, read_csv, read_parquet

__all__ = ["Limits", "Unit", "plan_units", "read_unit"]

FILES = {"parquet": read_parquet, "arrow": read_arrow}  # read from a file, not from a stream
_LOOK = 4096
_MAGIC = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstandard", b"BZh91AY&SY": "bzip2", b"\xfd7zXZ\0": "xz",
    b"PK\x03\x04": "a zip archive", b"7z\xbc\xaf": "a 7z archive", b"Rar!\x1a": "a rar archive", b"%PDF-": "PDF",
    b"\x7fELF": "a program", b"\x89PNG": "an image", b"\xff\xd8\xff": "an image",
}  # fmt: skip
_MAGIC_WITH_NUL = {b"PAR1": "parquet", b"ARROW1": "Arrow", b"GIF8": "an image", b"SQLite format 3": "a database"}


@dataclass(frozen=True)
class Unit:
    """A part of the raw data.

    Attributes:
        source, file: positions in the manifest's sources and in the files of that source.
        member: of an archive, the name or pattern of the members (null: all text files); else null.
        format: txt md jsonl json csv parquet arrow html; tar or zip for an archive, whose members tell their own.
        start, stop: of plain JSON lines bytes, of parquet row groups, of Arrow record batches, of zip the places among
            the wanted members by name; (0, None) is the whole.
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
                container = archive_of(path.name)
                format = (
                    container[0] if container else _format(path.name, source.format, shown, lambda p=path: _head(p))
                )
                for start, stop in _ranges(path, shown, format, source, unit_bytes, limits):
                    units.append(Unit(s, f, source.member if container else None, format, start, stop))
    return units


def _ranges(
    path: Path, shown: str, format: str, source: RawSource, unit_bytes: int, limits: Limits
) -> list[tuple[int, int | None]]:
    size, packed = path.stat().st_size, packing_of(path.name)[1]
    meter = Meter(shown, size, limits)
    if format == "zip":
        with open_zip(path) as archive:
            members = zip_members(archive, shown, source.member, source.format, meter)
        return cut([m.file_size for m in members], unit_bytes)
    if packed or format == "tar":
        return [(0, None)]
    if format == "parquet":
        return parquet_units(path, shown, unit_bytes, meter)
    if format == "arrow":
        return arrow_units(path, shown, unit_bytes)
    if format == "jsonl" and size > unit_bytes and not source.encoding:
        with open(path, "rb") as f:
            if not wide_encoding(f.read(4)):
                return [(at, at + unit_bytes if at + unit_bytes < size else None) for at in range(0, size, unit_bytes)]
    return [(0, None)]


def _format(name: str, format: str, shown: str, head: Callable[[], bytes]) -> str:
    """The user's word, else what the suffix tells, else what the first bytes tell beyond doubt."""
    if format != "auto":
        return format
    if found := format_of(name) or format_by_content(head()):
        return found
    raise DataError(
        f"{shown}: neither the suffix {suffix_of(packing_of(name)[0])!r} nor the content tells a format; set `format:` to one of "
        f"{', '.join(sorted(set(FORMATS.values())))}"
    )


def format_by_content(head: bytes) -> str | None:
    """The format that a file's first bytes tell, where they are unmistakable."""
    first = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if head.startswith((b"PAR1", b"ARROW1")):
        return "parquet" if head.startswith(b"PAR1") else "arrow"
    if first[:1] in (b"{", b"["):
        return "jsonl" if first[:1] == b"{" and b"}\n" in head else "json"
    return "html" if _is_page(head) else None


def _is_page(head: bytes) -> bool:
    return head.removeprefix(b"\xef\xbb\xbf").lstrip()[:14].lower().startswith((b"<!doctype html", b"<html"))


def _head(path: Path) -> bytes:
    packing = packing_of(path.name)[1]
    with open(path, "rb") as f:
        stream = (
            unpack(f, packing, path.name, Meter(path.name, path.stat().st_size, Limits())) if packing else Stream(f)
        )
        return stream.peek(_LOOK)


def read_unit(raw: Path, sources: Sequence[RawSource], unit: Unit, limits: Limits) -> Iterator[Document | Bad]:
    """The records of a unit, numbered from 0; offsets are those of the whole decompressed file or member.

    Raises:
        DataError: if the file or archive is damaged, refused, or lacks a column or member.
        ConfigError: if the source's template is not understood.
    """
    source = sources[unit.source]
    shown = source.files[unit.file].path
    path = raw / shown
    recipe = Recipe(source.text, source.cut, limits, source.encoding)
    with damage(shown):
        meter = Meter(shown, path.stat().st_size, limits)
        if unit.format == "zip":
            yield from _numbered(_read_zip(path, shown, unit, source.format, recipe))
        elif unit.format in FILES and not packing_of(path.name)[1]:
            yield from FILES[unit.format](path, shown, recipe, unit.start, unit.stop, meter)
        else:
            with open(path, "rb") as f:
                f.seek(max(0, unit.start - 1))
                if unit.format == "tar":
                    packing = archive_of(path.name)[1]
                    stream = unpack(f, packing, shown, meter) if packing else Stream(f)
                    inner = Meter(shown, meter.packed, limits)
                    yield from _numbered(_read_tar(stream, shown, unit, source.format, recipe, inner))
                else:
                    below, packing = packing_of(path.name)
                    stream = unpack(f, packing, shown, meter) if packing else Stream(f)
                    trusted = source.format != "auto"
                    yield from _read(stream, shown, below, unit.format, recipe, trusted, unit.start, unit.stop)


def _read(
    stream: Stream,
    shown: str,
    name: str,
    format: str,
    recipe: Recipe,
    trusted: bool,
    start: int = 0,
    stop: int | None = None,
) -> Iterator[Document | Bad]:
    """One file's or member's decompressed bytes; `trusted` tells that the user named the format."""
    if format in FILES:
        with on_disk(stream) as path:
            meter = Meter(shown, path.stat().st_size, recipe.limits)
            yield from FILES[format](path, shown, recipe, meter=meter)
        return
    head = stream.peek(_LOOK) if start == 0 else b""
    _refuse_other(head, shown, format, trusted)
    encoding = wide_encoding(head[:4])
    if recipe.encoding:
        _refuse_mark(head, shown, recipe.encoding)
        encoding = recipe.encoding
    text: Any = Utf8(stream, encoding) if encoding else stream
    if format == "jsonl":
        items = read_jsonl(text, shown, recipe, start, stop)
    elif format == "json":
        items = read_json(text, shown, recipe)
    elif format == "csv":
        items = read_csv(text, shown, recipe, "\t" if name.lower().endswith(".tsv") else ",")
    elif format == "html":
        items = read_page(text, shown, recipe)
    else:
        items = read_text(text, shown, recipe)
    if not encoding:
        yield from items
        return
    for item in items:  # whose offsets are those of the UTF-8 made of them
        if isinstance(item, Bad):
            yield replace(item, offset=None)
        else:
            yield replace(item, repaired=item.repaired or "\ufffd" in item.text)


def _refuse_mark(head: bytes, shown: str, encoding: str) -> None:
    """Raises where a byte order mark says another encoding than the one that the source names."""
    mark = "utf-8" if head.startswith(b"\xef\xbb\xbf") else wide_encoding(head[:4])
    if mark and not codecs.lookup(encoding).name.startswith(mark):
        raise DataError(
            f"{shown} begins with the byte order mark of {mark.upper()}, but its source says encoding: {encoding}; leave "
            "`encoding:` out for it, in a source of its own if the others need it"
        )


def _refuse_other(head: bytes, shown: str, format: str, trusted: bool) -> None:
    """Raises where a text file's content is of another kind."""
    for magic, kind in (_MAGIC | _MAGIC_WITH_NUL if b"\0" in head else _MAGIC).items():
        if head.startswith(magic):
            raise DataError(
                f"{shown} holds {kind}, not {format} as its name or `format:` says; give it the suffix of its content"
            )
    if not trusted and format != "html" and _is_page(head):
        raise DataError(
            f"{shown} holds an HTML page, not {format}: perhaps the server's error page. Fetch it again, or set "
            f"`format: html` (`format: {format}` to read it as it is)"
        )


def _read_zip(path: Path, shown: str, unit: Unit, format: str, recipe: Recipe) -> Iterator[Document | Bad]:
    packed = path.stat().st_size
    with open_zip(path) as archive:
        members = zip_members(archive, shown, unit.member, format, Meter(shown, packed, recipe.limits))
        inner = Meter(shown, packed, recipe.limits)
        for info in members[unit.start : unit.stop]:
            with archive.open(info) as f:
                yield from _read_member(f, shown, info.filename, format, recipe, inner)


def _read_tar(
    stream: Stream, shown: str, unit: Unit, format: str, recipe: Recipe, inner: Meter
) -> Iterator[Document | Bad]:
    for name, open_member in read_tar(stream, shown, unit.member, format):
        with open_member() as f:
            yield from _read_member(f, shown, name, format, recipe, inner)


def _read_member(f: Any, shown: str, name: str, format: str, recipe: Recipe, meter: Meter) -> Iterator[Document | Bad]:
    told = shown_member(shown, name)
    below, packing = packing_of(name)
    with damage(told):
        stream = unpack(f, packing, told, meter) if packing else Stream(f)
        found = _format(name, format, told, lambda: stream.peek(_LOOK))
        yield from _read(stream, told, below, found, recipe, format != "auto")


def _numbered(items: Iterator[Document | Bad]) -> Iterator[Document | Bad]:
    """The items of several members, numbered through."""
    for record, item in enumerate(items):
        yield replace(item, record=record)
