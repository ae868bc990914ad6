"""Raw files cut into units: pieces that can be read by themselves, whose records together are the file's records.

A plain jsonl file is cut at bytes (a unit owns the lines that begin in its range), parquet at row groups, an Arrow file at
record batches. Anything packed, archived, or without places to begin at is one unit and streams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.data.archives import is_archive, read_members
from foundry.data.formats import SUFFIXES, Bad, Document, Reading, format_of, read_json, read_jsonl, read_text
from foundry.data.streams import Limits, decompress, told_damage
from foundry.data.template import Template

ARCHIVE = "archive"
_OTHER_ENCODINGS = (b"\xff\xfe", b"\xfe\xff", b"\0\0")  # UTF-16 and UTF-32


@dataclass(frozen=True)
class Unit:
    """Positions in the manifest's sources and files; lines, row groups or batches in [start, stop), None: to the end."""

    source: int
    file: int
    format: str
    start: int = 0
    stop: int | None = None


def plan_units(raw: Path, sources: list[dict[str, Any]], unit_bytes: int) -> list[Unit]:
    """The units in the order of sources, files and places.

    Raises:
        DataError: for a file whose format is not told, or that is damaged where its plan is read.
    """
    return [
        Unit(s, f, format, start, stop)
        for s, source in enumerate(sources)
        for f, file in enumerate(source["files"])
        for format, start, stop in _cut(raw / file["path"], file["path"], source["format"], unit_bytes)
    ]


def _cut(path: Path, shown: str, format: str, unit_bytes: int) -> list[tuple[str, int, int | None]]:
    if is_archive(path.name):
        return [(ARCHIVE, 0, None)]
    bare = path.name.removesuffix(path.suffix) if path.suffix.lower() in (".gz", ".zst", ".bz2", ".xz") else path.name
    if (
        format == "auto"
        and bare == path.name
        and (found := format_by_content(path))
        and Path(bare).suffix not in SUFFIXES
    ):
        format = found
    format = format_of(format, bare, shown)
    places: list[int] = []
    with told_damage(shown):
        size = path.stat().st_size
        if bare != path.name or size <= unit_bytes:
            pass
        elif format == "jsonl":
            with open(path, "rb") as f:
                plain = not f.read(2).startswith(_OTHER_ENCODINGS)
            places = list(range(unit_bytes, size, unit_bytes)) if plain else []
        elif format in ("parquet", "arrow"):
            places = _groups(path, shown, format, unit_bytes)
    starts = [0, *places]
    return [(format, a, b) for a, b in zip(starts, [*starts[1:], None], strict=True)]


def format_by_content(path: Path) -> str | None:
    """The format of a file without a telling suffix, by its first bytes, where they are unmistakable."""
    with told_damage(str(path)), open(path, "rb") as f:
        head = f.read(1024)
    first = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if head.startswith((b"PAR1", b"ARROW1")):
        return "parquet" if head.startswith(b"PAR1") else "arrow"
    if first[:1] in (b"{", b"["):
        return "jsonl" if first[:1] == b"{" and b"}\n" in head else "json"
    return "html" if first[:14].lower().startswith((b"<!doctype html", b"<html")) else None


def _groups(path: Path, shown: str, format: str, unit_bytes: int) -> list[int]:
    """Row groups or record batches at which a further unit begins."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if format == "parquet":
            with pq.ParquetFile(path) as file:
                sizes = [file.metadata.row_group(g).total_byte_size for g in range(file.num_row_groups)]
        else:
            with open(path, "rb") as f:
                if f.read(6) != b"ARROW1":  # an IPC stream has no index
                    return []
            with pa.memory_map(str(path)) as source:
                n = pa.ipc.open_file(source).num_record_batches
            sizes = [path.stat().st_size // max(n, 1)] * n
    except pa.ArrowException as e:
        raise DataError(f"{shown} is not readable {format} ({e}); fetch or make it again") from None
    places, held = [], 0
    for g, size in enumerate(sizes):
        if held and held + size > unit_bytes:
            places.append(g)
            held = 0
        held += size
    return places


def read_unit(raw: Path, sources: list[dict[str, Any]], unit: Unit, limits: Limits) -> Iterator[Document | Bad]:
    """The records of a unit, numbered from 0 (in an archive: in each member).

    Raises:
        DataError: if the file is damaged, refused, not what its name says, or lacks a column or member.
    """
    source = sources[unit.source]
    shown = source["files"][unit.file]["path"]
    path = raw / shown
    template = Template(source["text"])
    with told_damage(shown):
        if unit.format == ARCHIVE:
            for name, stream, size in read_members(path, source["member"], shown, limits):
                how = Reading(f"{shown}!{name}", template, limits, source["cut"])
                inner, bare = decompress(stream, name, size, how.shown, limits)
                yield from _read(inner, format_of(source["format"], bare, how.shown), bare, how, 0, None)
            return
        how = Reading(shown, template, limits, source["cut"])
        with open(path, "rb") as f:
            if unit.format == "jsonl" and unit.start:
                f.seek(unit.start - 1)  # the line that ends here, or goes on, belongs to the unit before
                start = unit.start - 1 + _skip_line(f)
                if unit.stop is None or start < unit.stop:
                    yield from read_jsonl(f, how, start, unit.stop)
                return
            stream, bare = decompress(f, path.name, path.stat().st_size, shown, limits)
            yield from _read(stream, unit.format, bare, how, unit.start, unit.stop)


def _skip_line(f: Any) -> int:
    """Bytes up to and with the next line feed."""
    skipped = 0
    while chunk := f.read(1 << 16):
        if (end := chunk.find(b"\n")) >= 0:
            f.seek(end + 1 - len(chunk), 1)
            return skipped + end + 1
        skipped += len(chunk)
    return skipped


def _read(stream: Any, format: str, name: str, how: Reading, start: int, stop: int | None) -> Iterator[Document | Bad]:
    if format in ("txt", "md"):
        yield from read_text(stream, how)
    elif format == "jsonl":
        yield from read_jsonl(stream, how, start, stop)
    elif format == "json":
        yield from read_json(stream, how)
    elif format == "html":
        from foundry.data.webpage import read_html

        yield read_html(stream, how)
    else:
        from foundry.data.tables import read_arrow, read_csv, read_parquet

        if format == "csv":
            yield from read_csv(stream, how, "\t" if name.lower().endswith(".tsv") else ",")
        elif format == "parquet":
            yield from read_parquet(stream, how, start, stop)
        else:
            yield from read_arrow(stream, how, start, stop)
