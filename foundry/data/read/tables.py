"""Readers of tables: CSV, parquet and Arrow as documents and as rows that could not be read.

Guarantees: every row comes out once; a column that the template needs and that is missing or is not text raises before
the first row; a text that is not UTF-8, null or too long makes its row bad, never its column. CSV streams and knows its
byte offsets; parquet and Arrow are read from a file, with some rows of one row group or batch in memory.

Traps: `iter_batches` gives empty batches, without an error, for columns that do not exist; `to_pylist` of a column
fails for one row that is not UTF-8; an Arrow stream cut at the end of a batch reads as complete.
"""

from __future__ import annotations

import csv
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.data.read.kinds import split_compression, suffix_of
from foundry.data.read.readers import WHOLE, Range, ranges_by_size, reads
from foundry.data.read.records import Bad, Document, DocumentBuilder, excerpt
from foundry.data.read.streams import GrowthLimit, Limits, read_lines

ROWS = 1024
BATCH = 32 << 20  # bytes of a parquet batch, estimated from the average row
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


@reads("csv")
def read_csv(stream: Any, shown: str, builder: DocumentBuilder) -> Iterator[Document | Bad]:
    """Rows below a header; quotes as in RFC 4180, tabs between the fields of a .tsv file. Blank lines are not rows.

    A quote that is not closed, or is closed inside a field, makes its first line bad; reading continues with the next
    line.

    Raises:
        DataError: if the header cannot be read, has a name twice or lacks a column of the template.
    """
    delimiter = "\t" if suffix_of(split_compression(shown)[0]) == ".tsv" else ","
    csv.field_size_limit(max(csv.field_size_limit(), builder.limit + 1))
    names: list[str] | None = None
    record = 0
    for offset, raw, row in _rows(read_lines(stream, builder.limit), builder.limit, delimiter):
        if names is None:
            names = _header(row, shown, builder, raw)
            continue
        if isinstance(row, str):
            yield Bad(shown, record, offset, row, excerpt(raw))
        elif len(row) != len(names):
            yield Bad(shown, record, offset, f"ragged_row {len(row)} of {len(names)} fields", excerpt(raw))
        else:
            yield builder.build(shown, record, dict(zip(names, row, strict=True)), offset)
        record += 1


def _header(row: list[str] | str, shown: str, builder: DocumentBuilder, raw: bytes) -> list[str]:
    if isinstance(row, str):
        raise DataError(f"{shown}: the header row cannot be read ({row}): {excerpt(raw)!r}")
    for name in (*builder.fields, *builder.keep):
        if row.count(name) != 1:
            raise DataError(
                f"{shown} has {'no' if name not in row else 'more than one'} column {name!r}; its columns are "
                f"{', '.join(row)[:1000]}. Set `{'text' if name in builder.fields else 'fields'}:` to fit"
            )
    return row


class _Refused(Exception):
    """A line that the CSV parser must not see.

    Attributes:
        reason: of the quarantine.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def _rows(
    lines: Iterator[tuple[int, bytes, bool]], limit: int, delimiter: str
) -> Iterator[tuple[int, bytes, list[str] | str]]:
    """(byte offset, first line, fields or the reason why there are none)."""
    again: deque[tuple[int, bytes, bool]] = deque()  # lines after a row that went wrong
    taken: list[tuple[int, bytes, bool]] = []  # lines of the row

    def feed() -> Iterator[str]:
        size = 0
        while item := again.popleft() if again else next(lines, None):
            taken.append(item)
            offset, line, complete = item
            size += len(line) + 1
            if not complete or size > limit + 1:
                raise _Refused("record_too_long")
            if b"\0" in line:
                raise _Refused("binary")
            text = line.decode("utf-8", "surrogateescape")
            yield (text if offset else text.removeprefix("\ufeff")) + "\n"

    while True:
        taken.clear()
        try:
            row: list[str] | str = next(csv.reader(feed(), delimiter=delimiter, strict=True), [])
        except (_Refused, csv.Error) as e:
            row = e.reason if isinstance(e, _Refused) else "broken_csv"
            again.extendleft(reversed(taken[1:]))
        if not taken:
            return
        if row:
            yield taken[0][0], taken[0][1], row


@contextmanager
def _parquet(path: Path, shown: str, limits: Limits) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False) as table:
            GrowthLimit(shown, path.stat().st_size, limits).add(sum(_group_bytes(table)))
            yield table
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{shown} is not readable parquet ({e}); fetch or make it again") from None


def _group_bytes(table: Any) -> list[int]:
    return [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]


def divide_parquet(path: Path, shown: str, unit_bytes: int, limits: Limits) -> list[Range]:
    """Ranges of row groups, by their decompressed sizes.

    Raises:
        DataError: if the file is not parquet or grows to more than the limits allow.
    """
    with _parquet(path, shown, limits) as table:
        return ranges_by_size(_group_bytes(table), unit_bytes)


def divide_arrow(path: Path, shown: str, unit_bytes: int, limits: Limits) -> list[Range]:
    """Ranges of the record batches of an IPC file, which are assumed to be of equal size; a stream is one range."""
    import pyarrow as pa

    with _arrow(path, shown) as reader:
        if isinstance(reader, pa.RecordBatchStreamReader):
            return WHOLE
        n = reader.num_record_batches
        return ranges_by_size([path.stat().st_size // max(1, n)] * n, unit_bytes)


@reads("parquet", from_disk=True, divide=divide_parquet)
def read_parquet(
    path: Path, shown: str, builder: DocumentBuilder, start: int = 0, stop: int | None = None
) -> Iterator[Document | Bad]:
    """The rows of the row groups [start, stop).

    Raises:
        DataError: if the file is damaged, or a column is missing or is not text.
    """
    with _parquet(path, shown, builder.limits) as table:
        columns = _columns(table.schema_arrow, shown, builder)
        groups = range(start, table.num_row_groups if stop is None else stop)
        rows = sum(table.metadata.row_group(i).num_rows for i in groups)
        size = sum(table.metadata.row_group(i).total_byte_size for i in groups)
        most = max(1, min(ROWS, BATCH * rows // max(1, size)))
        record = 0
        for batch in table.iter_batches(batch_size=most, row_groups=list(groups), columns=columns):
            yield from _documents(batch, columns, shown, builder, record)
            record += batch.num_rows


@contextmanager
def _arrow(path: Path, shown: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as source:
            if source.read(6) == b"ARROW1":
                yield pa.ipc.open_file(source)
            else:
                source.seek(0)
                yield pa.ipc.open_stream(source)
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{shown} is not readable Arrow ({e}); fetch or make it again") from None


@reads("arrow", from_disk=True, divide=divide_arrow)
def read_arrow(
    path: Path, shown: str, builder: DocumentBuilder, start: int = 0, stop: int | None = None
) -> Iterator[Document | Bad]:
    """The rows of the record batches [start, stop) of an IPC file or stream.

    Raises:
        DataError: if the file is damaged, or a column is missing or is not text.
    """
    import pyarrow as pa

    with _arrow(path, shown) as reader:
        columns = _columns(reader.schema, shown, builder)
        if isinstance(reader, pa.RecordBatchStreamReader):
            batches: Any = iter(reader)
        else:
            last = reader.num_record_batches if stop is None else stop
            batches = (reader.get_batch(i) for i in range(start, last))
        record, growth = 0, GrowthLimit(shown, path.stat().st_size, builder.limits)
        for batch in batches:
            growth.add(batch.nbytes)
            for at in range(0, batch.num_rows, ROWS):
                yield from _documents(batch.slice(at, ROWS), columns, shown, builder, record + at)
            record += batch.num_rows
        if isinstance(reader, pa.RecordBatchStreamReader):
            with open(path, "rb") as f:
                f.seek(-8, 2)
                if f.read() != END_OF_STREAM:
                    raise DataError(
                        f"{shown} is truncated: an Arrow stream without its end mark; fetch or make it again"
                    )


def _columns(schema: Any, shown: str, builder: DocumentBuilder) -> list[str]:
    """The columns to read, once each field of the template is known to be in them, and one at least to be text."""
    kinds = {}
    listed = ", ".join(f"{f.name} ({f.type})" for f in schema)[:1000]
    for field in (*builder.fields, *builder.keep):
        column = field if field in schema.names else field.split(".")[0]
        if schema.names.count(column) != 1:
            raise DataError(
                f"{shown} has {'more than one' if column in schema.names else 'no'} column {column!r}; "
                f"its columns are {listed}. Set `{'text' if field in builder.fields else 'fields'}:` to fit"
            )
        if field in builder.fields:
            kinds[field] = _kind(schema.field(column).type, [] if column == field else field.split(".")[1:])
    wrong = [f for f, kind in kinds.items() if kind == "other"]
    if wrong or "text" not in kinds.values():
        names = wrong or list(kinds)
        seen = ", ".join(f"{n!r} is {schema.field(n if n in schema.names else n.split('.')[0]).type}" for n in names)
        raise DataError(f"{shown} has no text where the template wants it: {seen}; its columns are {listed}")
    used = {f if f in schema.names else f.split(".")[0] for f in (*builder.fields, *builder.keep)}
    if schema.names.count("url") == 1 and _kind(schema.field("url").type, []) == "text":
        used.add("url")
    return sorted(used)


def _kind(t: Any, below: list[str]) -> str:
    """text, number or other: what a column's type, or the field `below` a struct, gives to a template."""
    import pyarrow as pa

    if pa.types.is_dictionary(t):
        return _kind(t.value_type, below)
    if pa.types.is_struct(t):
        i = t.get_field_index(below[0]) if below else -1
        return "other" if i < 0 else _kind(t.field(i).type, below[1:])
    if below:
        return "other"
    if pa.types.is_list(t) or pa.types.is_large_list(t) or pa.types.is_fixed_size_list(t):
        return _kind(t.value_type, [])
    if pa.types.is_integer(t) or pa.types.is_floating(t):
        return "number"
    texts = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view")
    return "text" if str(t) in texts or pa.types.is_fixed_size_binary(t) else "other"


def _documents(
    batch: Any, columns: list[str], shown: str, builder: DocumentBuilder, record: int
) -> Iterator[Document | Bad]:
    values = [_column(batch.column(batch.schema.get_field_index(c))) for c in columns]
    for row in zip(*values, strict=True):
        yield builder.build(shown, record, dict(zip(columns, row, strict=True)))
        record += 1


def _column(column: Any) -> list[Any]:
    """Python values; strings are read as bytes, since one that is not UTF-8 would make the column fail."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(_as_binary(column.type))
    column.validate(full=True)  # the offsets of a damaged Arrow file may point anywhere
    return [_undecoded(v) for v in column.to_pylist()]


def _as_binary(t: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_string(t):
        return pa.binary()
    if pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return pa.large_binary()
    if pa.types.is_list(t):
        return pa.list_(_as_binary(t.value_type))
    if pa.types.is_large_list(t):
        return pa.large_list(_as_binary(t.value_type))
    if pa.types.is_struct(t):
        return pa.struct([pa.field(f.name, _as_binary(f.type)) for f in t])
    return t


def _undecoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_undecoded(v) for v in value]
    if isinstance(value, dict):
        return {k: _undecoded(v) for k, v in value.items()}
    return value
