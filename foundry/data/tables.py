"""Readers of tables: csv and tsv, parquet, Arrow IPC. A missing or wrongly typed column is told before the first row."""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

import pyarrow as pa

from foundry.config import DataError
from foundry.data.formats import Bad, Document, Reading, build, excerpt
from foundry.data.streams import CHUNK, as_utf8

ROWS = 1024


class _Raw(io.RawIOBase):
    """A stream with `read` alone, for the text layer of the standard library."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def read_csv(stream: Any, how: Reading, delimiter: str = ",") -> Iterator[Document | Bad]:
    """A row is a record; the first row names the fields.

    Raises:
        DataError: without a header, for a missing column, and where a field is longer than a record may be (a quote that is
            never closed swallows the rest of a file).
    """
    csv.field_size_limit(how.limits.record)
    text = io.TextIOWrapper(
        io.BufferedReader(_Raw(as_utf8(stream)), CHUNK), encoding="utf-8-sig", errors="surrogateescape", newline=""
    )
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    names: list[str] | None = None
    record = 0
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as e:
            if "field larger" in str(e):
                raise DataError(
                    f"{how.shown}, line {line}: a field of more than {how.limits.record:,} bytes; a quote that is not closed, "
                    "or clean.max_record_bytes is too small"
                ) from None
            yield Bad(how.shown, record, None, f"broken_csv line {line}", excerpt(str(e)))
            record += 1
            continue
        if names is None:
            names = row
            _check_columns(how, names, names)
            if len(set(names)) < len(names):
                raise DataError(f"{how.shown} has two columns of one name: {', '.join(names)}")
        elif row:
            if len(row) == len(names):
                yield build(how, record, dict(zip(names, row, strict=True)))
            else:
                told = f"ragged_row line {line}: {len(row)} fields, not {len(names)}"
                yield Bad(how.shown, record, None, told, excerpt(delimiter.join(row).encode("utf-8", "replace")))
            record += 1


def _check_columns(how: Reading, names: list[str], text_names: list[str]) -> list[str]:
    """The columns that the template needs."""
    columns = sorted({f if f in names else f.split(".")[0] for f in how.template.fields})
    if missing := [c for c in columns if c not in names]:
        raise DataError(
            f"{how.shown} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}. Set `text:` to fit"
        )
    if not any(c in text_names for c in columns):
        raise DataError(
            f"{how.shown}: no column of the template {', '.join(map(repr, columns))} holds text; columns with text are "
            f"{', '.join(text_names) or 'none'}. Set `text:` to fit"
        )
    return columns


def _holds_text(t: pa.DataType) -> bool:
    if pa.types.is_dictionary(t) or pa.types.is_list(t) or pa.types.is_large_list(t):
        return _holds_text(t.value_type)
    if pa.types.is_struct(t):
        return any(_holds_text(f.type) for f in t)
    return (
        pa.types.is_string(t)
        or pa.types.is_large_string(t)
        or pa.types.is_string_view(t)
        or pa.types.is_binary(t)
        or (pa.types.is_large_binary(t))
    )


def _columns(how: Reading, schema: pa.Schema) -> list[str]:
    columns = _check_columns(how, schema.names, [f.name for f in schema if _holds_text(f.type)])
    if "url" in schema.names and "url" not in columns and _holds_text(schema.field("url").type):
        columns.append("url")
    return columns


@contextmanager
def told_table(how: Reading, kind: str) -> Iterator[None]:
    try:
        yield
    except pa.ArrowException as e:
        raise DataError(f"{how.shown} is not readable {kind} ({e}); fetch or make it again") from None


@contextmanager
def seekable(stream: Any) -> Iterator[BinaryIO]:
    """A file to seek in; what streams out of an archive is copied to an unnamed temporary file."""
    if type(stream) is io.BufferedReader:  # a member of a tar is a subclass that cannot seek
        yield stream
        return
    with tempfile.TemporaryFile() as f:
        while chunk := stream.read(CHUNK):
            f.write(chunk)
        f.seek(0)
        yield f


def read_parquet(stream: Any, how: Reading, start: int = 0, stop: int | None = None) -> Iterator[Document | Bad]:
    """The rows of the row groups [start, stop)."""
    import pyarrow.parquet as pq

    with seekable(stream) as f, told_table(how, "parquet"):
        table = pq.ParquetFile(f, page_checksum_verification=True)
        # iter_batches gives empty batches, without an error, for columns that do not exist.
        columns = _columns(how, table.schema_arrow)
        groups = list(range(start, table.num_row_groups if stop is None else stop))
        yield from _rows(how, columns, table.iter_batches(batch_size=ROWS, columns=columns, row_groups=groups))


def read_arrow(stream: Any, how: Reading, start: int = 0, stop: int | None = None) -> Iterator[Document | Bad]:
    """The rows of the record batches [start, stop) of an Arrow IPC file; of an IPC stream, all rows."""
    with seekable(stream) as f, told_table(how, "Arrow IPC"):
        magic = f.read(6)
        f.seek(0)
        if magic == b"ARROW1":
            file = pa.ipc.open_file(f)
            columns = _columns(how, file.schema)
            numbers = range(start, file.num_record_batches if stop is None else stop)
            batches: Any = (file.get_batch(i) for i in numbers)
        else:
            batches = pa.ipc.open_stream(f)
            columns = _columns(how, batches.schema)
        yield from _rows(how, columns, (s for b in batches for s in _slices(b)))


def _slices(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    batch.validate()
    return (batch.slice(i, ROWS) for i in range(0, len(batch), ROWS))


def _rows(how: Reading, columns: list[str], batches: Any) -> Iterator[Document | Bad]:
    record = 0
    for batch in batches:
        values = [_column(batch.column(c)) for c in columns]
        for row in zip(*values, strict=True):
            yield build(how, record, dict(zip(columns, row, strict=True)))
            record += 1


def _column(column: Any) -> list[Any]:
    """Python values; strings go by way of bytes, since one that is not UTF-8 would fail the whole column."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return _undecoded(column.cast(_as_binary(column.type)).to_pylist())


def _as_binary(t: Any) -> Any:
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
