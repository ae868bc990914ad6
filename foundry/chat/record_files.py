"""Files of records that users bring: JSON lines, JSON, CSV, TSV, parquet and Arrow, compressed or not.

Every record comes out once, with its place: as a JSON object, or with the reason why it is none.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from foundry.config import DataError
from foundry.data.read.kinds import format_of, split_compression, suffix_of
from foundry.data.read.records import excerpt
from foundry.data.read.streams import GrowthLimit, Limits, damage, on_disk, read_all, read_lines, unpack

READABLE = ("jsonl", "json", "csv", "parquet", "arrow")
LIMITS = Limits()
JSON_BYTES = 1 << 30  # of a file that is one JSON value; larger ones belong into JSON lines


class RawRecord(NamedTuple):
    """A record of a file.

    Attributes:
        row: counted from 1.
        value: the JSON object; None if the record is not one.
        reason: why not; empty if it is one.
        shown: the beginning of the record.
    """

    row: int
    value: dict[str, Any] | None
    reason: str
    shown: str


class _RepeatedKey(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _RepeatedKey
    return value


def _parsed(row: int, raw: bytes, complete: bool = True) -> RawRecord:
    value, reason = None, ""
    try:
        text = raw.decode("utf-8").removeprefix("\ufeff")
        value = json.loads(text, object_pairs_hook=_object)
    except UnicodeDecodeError:
        reason = "not_utf8"
    except _RepeatedKey:
        reason = "repeated_key"
    except RecursionError:
        reason = "too_deep"
    except ValueError:
        reason = "broken_json"
    if not complete:
        reason = "record_too_long"
    if not reason and not isinstance(value, dict):
        reason = "not_an_object"
    return RawRecord(row, None if reason else value, reason, excerpt(raw))


def read_records(path: Path, shown: str) -> Iterator[RawRecord]:
    """The records of a file, in order.

    Args:
        shown: the name of the file in messages.

    Raises:
        DataError: if the file is of no format that has records, or is damaged.
    """
    format, compression = format_of(path.name), split_compression(path.name)[1]
    if format not in READABLE:
        raise DataError(
            f"{shown}: conversations are read from {', '.join(READABLE)} (and .tsv), compressed or not; its suffix "
            "says something else: rename or convert it"
        )
    with damage(shown), open(path, "rb") as raw:
        stream = unpack(raw, compression, shown, GrowthLimit(shown, path.stat().st_size, LIMITS))
        if format == "jsonl":
            lines = (x for x in read_lines(stream, LIMITS.record) if x[1].strip())
            for row, (_, line, complete) in enumerate(lines, 1):
                yield _parsed(row, line, complete)
        elif format == "json":
            yield from _json(stream, shown)
        elif format == "csv":
            yield from _csv(stream, shown)
        else:
            with on_disk(stream) as spooled:
                yield from _table(spooled, format, shown)


def _json(stream: Any, shown: str) -> Iterator[RawRecord]:
    raw, complete = read_all(stream, JSON_BYTES)
    if not complete:
        raise DataError(f"{shown} is one JSON value of more than {JSON_BYTES:,} bytes: make it JSON lines (.jsonl)")
    try:
        values = json.loads(raw)
    except (ValueError, RecursionError) as e:
        raise DataError(
            f"{shown} is not one JSON value ({e}); if it has one object per line, name it .jsonl, else make it again"
        ) from None
    if not isinstance(values, list):
        raise DataError(f"{shown} is a JSON {type(values).__name__}; conversations are a list of objects")
    for row, value in enumerate(values, 1):
        reason = "" if isinstance(value, dict) else "not_an_object"
        yield RawRecord(row, None if reason else value, reason, excerpt(json.dumps(value, ensure_ascii=False)))


def _csv(stream: Any, shown: str) -> Iterator[RawRecord]:
    raw, complete = read_all(stream, JSON_BYTES)
    if not complete:
        raise DataError(f"{shown} is a table of more than {JSON_BYTES:,} bytes: convert it to parquet or JSON lines")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(f"{shown} is not UTF-8 (byte {e.start}): save it as UTF-8") from None
    csv.field_size_limit(max(csv.field_size_limit(), LIMITS.record))
    delimiter = "\t" if suffix_of(split_compression(shown)[0]) == ".tsv" else ","
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        names = next(rows, [])
        if len(set(names)) != len(names):
            raise DataError(f"{shown} has a column twice: {', '.join(names)[:300]}")
        for row, fields in enumerate((f for f in rows if f), 1):
            reason = "" if len(fields) == len(names) else "ragged_row"
            value = None if reason else dict(zip(names, fields, strict=True))
            yield RawRecord(row, value, reason, excerpt(",".join(fields)))
    except csv.Error as e:
        raise DataError(f"{shown} is not CSV as in RFC 4180 (line {rows.line_num}: {e}); make it again") from None


def _table(path: Path, format: str, shown: str) -> Iterator[RawRecord]:
    import pyarrow as pa
    import pyarrow.feather
    import pyarrow.parquet as pq

    try:
        if format == "parquet":
            with pq.ParquetFile(path) as table:
                batches = list(table.iter_batches(1024))
        else:
            batches = pa.feather.read_table(path).to_batches()
        row = 0
        for batch in batches:
            for value in batch.to_pylist():
                row += 1
                value = {k: v for k, v in value.items() if v is not None}  # a table has every column in every row
                yield RawRecord(row, value, "", excerpt(repr(value)))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as e:
        raise DataError(f"{shown} is not readable {format} ({e}); make it again") from None
