"""Readers of tables: CSV, parquet and Arrow as documents and as rows that could not be read.

Guarantees: every row comes out once; a column that the template needs and that is missing or holds no text raises before
the first row; a text that is not UTF-8, null or too long is one row's fault, never its column's. CSV streams and knows
its byte offsets; of parquet and Arrow, which are read from a file, memory holds some rows of one row group or batch.

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
from foundry.data.read.formats import Bad, Document, Recipe, excerpt
from foundry.data.read.streams import Meter, read_lines

ROWS = 1024
BATCH = 32 << 20  # bytes of a parquet batch, as far as the average row tells
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"


def read_csv(stream: Any, shown: str, recipe: Recipe, delimiter: str) -> Iterator[Document | Bad]:
    """Rows below a header; quotes as in RFC 4180. Blank lines are no rows.

    A quote that is not closed, or closed amid a field, makes its first line bad; reading goes on with the next line.

    Raises:
        DataError: if the header cannot be read, says a name twice or lacks a column of the template.
    """
    csv.field_size_limit(max(csv.field_size_limit(), recipe.limit + 1))
    names: list[str] | None = None
    record = 0
    for offset, raw, row in _rows(read_lines(stream, recipe.limit), recipe.limit, delimiter):
        if names is None:
            names = _header(row, shown, recipe, raw)
            continue
        if isinstance(row, str):
            yield Bad(shown, record, offset, row, excerpt(raw))
        elif len(row) != len(names):
            yield Bad(shown, record, offset, f"ragged_row {len(row)} of {len(names)} fields", excerpt(raw))
        else:
            yield recipe.build(shown, record, dict(zip(names, row, strict=True)), offset)
        record += 1


def _header(row: list[str] | str, shown: str, recipe: Recipe, raw: bytes) -> list[str]:
    if isinstance(row, str):
        raise DataError(f"{shown}: the header row cannot be read ({row}): {excerpt(raw)!r}")
    for name in recipe.fields:
        if row.count(name) != 1:
            raise DataError(
                f"{shown} has {'no' if name not in row else 'more than one'} column {name!r}; its columns are "
                f"{', '.join(row)[:1000]}. Set `text:` to fit"
            )
    return row


class _Refused(Exception):
    """A line that no CSV reader is to see.

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
    held: list[tuple[int, bytes, bool]] = []

    def feed() -> Iterator[str]:
        size = 0
        while item := again.popleft() if again else next(lines, None):
            held.append(item)
            offset, line, whole = item
            size += len(line) + 1
            if not whole or size > limit + 1:
                raise _Refused("record_too_long")
            if b"\0" in line:
                raise _Refused("binary")
            text = line.decode("utf-8", "surrogateescape")
            yield (text if offset else text.removeprefix("\ufeff")) + "\n"

    while True:
        held.clear()
        try:
            row: list[str] | str = next(csv.reader(feed(), delimiter=delimiter, strict=True), [])
        except (_Refused, csv.Error) as e:
            row = e.reason if isinstance(e, _Refused) else "broken_csv"
            again.extendleft(reversed(held[1:]))
        if not held:
            return
        if row:
            yield held[0][0], held[0][1], row


@contextmanager
def _parquet(path: Path, shown: str, meter: Meter | None) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, page_checksum_verification=True, buffer_size=1 << 20, pre_buffer=False) as table:
            if meter:
                meter.add(sum(_group_bytes(table)))
            yield table
    except (pa.ArrowException, OSError) as e:
        raise DataError(f"{shown} is not readable parquet ({e}); fetch or make it again") from None


def _group_bytes(table: Any) -> list[int]:
    return [table.metadata.row_group(i).total_byte_size for i in range(table.metadata.num_row_groups)]


def parquet_units(path: Path, shown: str, unit_bytes: int, meter: Meter) -> list[tuple[int, int | None]]:
    """Ranges of row groups of about `unit_bytes` each, unpacked.

    Raises:
        DataError: if the file is not parquet or grows to more than the meter allows.
    """
    with _parquet(path, shown, meter) as table:
        return cut(_group_bytes(table), unit_bytes)


def arrow_units(path: Path, shown: str, unit_bytes: int) -> list[tuple[int, int | None]]:
    """Ranges of the record batches of an IPC file, taken as of equal size; a stream is one unit."""
    import pyarrow as pa

    with _arrow(path, shown) as reader:
        if isinstance(reader, pa.RecordBatchStreamReader):
            return [(0, None)]
        n = reader.num_record_batches
        return cut([path.stat().st_size // max(1, n)] * n, unit_bytes)


def cut(sizes: list[int], unit_bytes: int) -> list[tuple[int, int | None]]:
    cuts, size = [0], 0
    for i, n in enumerate(sizes):
        if size and size + n > unit_bytes:
            cuts.append(i)
            size = 0
        size += n
    return list(zip(cuts, [*cuts[1:], len(sizes)], strict=True)) if len(cuts) > 1 else [(0, None)]


def read_parquet(
    path: Path, shown: str, recipe: Recipe, start: int = 0, stop: int | None = None, meter: Meter | None = None
) -> Iterator[Document | Bad]:
    """The rows of the row groups [start, stop).

    Raises:
        DataError: if the file is damaged, or a column is missing or holds no text.
    """
    with _parquet(path, shown, meter) as table:
        columns = _columns(table.schema_arrow, shown, recipe)
        groups = range(start, table.num_row_groups if stop is None else stop)
        rows = sum(table.metadata.row_group(i).num_rows for i in groups)
        size = sum(table.metadata.row_group(i).total_byte_size for i in groups)
        most = max(1, min(ROWS, BATCH * rows // max(1, size)))
        record = 0
        for batch in table.iter_batches(batch_size=most, row_groups=list(groups), columns=columns):
            yield from _documents(batch, columns, shown, recipe, record)
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


def read_arrow(
    path: Path, shown: str, recipe: Recipe, start: int = 0, stop: int | None = None, meter: Meter | None = None
) -> Iterator[Document | Bad]:
    """The rows of the record batches [start, stop) of an IPC file or stream.

    Raises:
        DataError: if the file is damaged, or a column is missing or holds no text.
    """
    import pyarrow as pa

    with _arrow(path, shown) as reader:
        columns = _columns(reader.schema, shown, recipe)
        if isinstance(reader, pa.RecordBatchStreamReader):
            batches: Any = iter(reader)
        else:
            last = reader.num_record_batches if stop is None else stop
            batches = (reader.get_batch(i) for i in range(start, last))
        record = 0
        for batch in batches:
            if meter:
                meter.add(batch.nbytes)
            for at in range(0, batch.num_rows, ROWS):
                yield from _documents(batch.slice(at, ROWS), columns, shown, recipe, record + at)
            record += batch.num_rows
        if isinstance(reader, pa.RecordBatchStreamReader):
            with open(path, "rb") as f:
                f.seek(-8, 2)
                if f.read() != END_OF_STREAM:
                    raise DataError(f"{shown} is cut: an Arrow stream without its end mark; fetch or make it again")


def _columns(schema: Any, shown: str, recipe: Recipe) -> list[str]:
    """The columns to read, once each of the template's fields is known to be in them and some of it to be text."""
    kinds = {}
    told = ", ".join(f"{f.name} ({f.type})" for f in schema)[:1000]
    for field in recipe.fields:
        column = field if field in schema.names else field.split(".")[0]
        if schema.names.count(column) != 1:
            raise DataError(
                f"{shown} has {'more than one' if column in schema.names else 'no'} column {column!r}; "
                f"its columns are {told}. Set `text:` to fit"
            )
        kinds[field] = _kind(schema.field(column).type, [] if column == field else field.split(".")[1:])
    wrong = [f for f, kind in kinds.items() if kind == "other"]
    if wrong or "text" not in kinds.values():
        names = wrong or list(kinds)
        seen = ", ".join(f"{n!r} is {schema.field(n if n in schema.names else n.split('.')[0]).type}" for n in names)
        raise DataError(f"{shown} has no text where the template wants it: {seen}; its columns are {told}")
    used = {f if f in schema.names else f.split(".")[0] for f in recipe.fields}
    if schema.names.count("url") == 1 and _kind(schema.field("url").type, []) == "text":
        used.add("url")
    return sorted(used)


def _kind(t: Any, below: list[str]) -> str:
    """text, number or other: what a column's type, or the field `below` a struct, gives a template."""
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


def _documents(batch: Any, columns: list[str], shown: str, recipe: Recipe, record: int) -> Iterator[Document | Bad]:
    values = [_column(batch.column(batch.schema.get_field_index(c))) for c in columns]
    for row in zip(*values, strict=True):
        yield recipe.build(shown, record, dict(zip(columns, row, strict=True)))
        record += 1


def _column(column: Any) -> list[Any]:
    """Python values; strings go by way of bytes, since one that is not UTF-8 would fail the whole column."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    column = column.cast(_as_binary(column.type))
    column.validate(full=True)  # of a damaged Arrow file the offsets may point anywhere
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
