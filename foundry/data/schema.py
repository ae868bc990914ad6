"""The clean documents' columns and their checks (pandera), and the one way to write them.

Parquet files are the same bytes for the same rows: fixed row groups and parts, zstd, no times. Columns are `string`,
not `large_string`: a part holds far less than 2 GiB.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError
from foundry.utils.files import make_folder, open_to_write

COLUMNS = pa.schema(
    [
        ("doc_id", pa.string()),
        ("text", pa.string()),
        ("source", pa.string()),
        ("lang", pa.string()),
        ("n_bytes", pa.int64()),
    ]
)
GROUP_ROWS, GROUP_BYTES = 4096, 16 << 20  # a row group ends at the first of the two
PART_BYTES = 128 << 20  # a part ends after this much text
SPLITS = ("train", "val", "test")


def doc_id(data: bytes) -> str:
    """Name of a document: the first 16 hexadecimal digits of the sha256 of its UTF-8 text."""
    return hashlib.sha256(data).hexdigest()[:16]


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a document, drawn by its hash alone: other documents never move it."""
    u = int(name, 16) / 2**64
    return "test" if u < test_fraction else "val" if u < test_fraction + val_fraction else "train"


@cache
def clean_model() -> Any:
    """The pandera model of `data/clean/*/part-*.parquet`; imported on first use, since pandera costs a second."""
    import pandera.pyarrow as pp

    class CleanDocuments(pp.DataFrameModel):
        doc_id: str = pp.Field(str_matches=r"^[0-9a-f]{16}$")
        text: str = pp.Field(str_length={"min_value": 1})
        source: str = pp.Field(str_matches=r"^[a-z0-9][a-z0-9._-]*$")
        lang: str = pp.Field(str_length={"min_value": 1})
        n_bytes: int = pp.Field(ge=1)

        @pp.dataframe_check(error=LENGTHS)
        def bytes_agree(cls, data: Any) -> bool:
            return not _wrong_lengths(data.table)

        @pp.dataframe_check(error=UNIQUE)
        def ids_differ(cls, data: Any) -> bool:
            return not _repeated_ids(data.table)

        @pp.dataframe_check(error=UTF8)
        def texts_are_utf8(cls, data: Any) -> bool:
            return not _not_utf8(data.table)

        class Config:
            strict = True
            ordered = True

    return CleanDocuments


LENGTHS = "n_bytes is not the length of text in UTF-8 bytes"
UNIQUE = "a doc_id stands twice"
UTF8 = "text is not valid UTF-8"


def _wrong_lengths(table: pa.Table) -> list[int]:
    import pyarrow.compute as pc

    same = pc.equal(pc.binary_length(table["text"]), table["n_bytes"]).to_numpy()
    return np.flatnonzero(same != True).tolist()  # noqa: E712 - a null is wrong as well


def _repeated_ids(table: pa.Table) -> list[int]:
    ids = np.asarray(table["doc_id"].to_pylist(), object)
    _, first = np.unique(ids.astype(str), return_index=True)
    return sorted(set(range(len(ids))) - set(first.tolist()))


def _not_utf8(table: pa.Table) -> list[int]:
    def wrong(column: pa.ChunkedArray) -> bool:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid:
            return True
        return False

    if not wrong(table["text"]):
        return []
    return [i for i in range(len(table)) if wrong(table["text"].slice(i, 1))]


def check_documents(table: pa.Table, where: str, first_row: int = 0) -> None:
    """Validates a table of clean documents.

    Args:
        first_row: number of the table's first row in the file that messages name.

    Raises:
        DataError: with the checks that failed and the rows that fail them.
    """
    from pandera.errors import SchemaErrors

    if not table.schema.equals(COLUMNS):
        seen, wanted = (", ".join(f"{f.name} {f.type}" for f in s) for s in (table.schema, COLUMNS))
        raise DataError(f"{where} does not hold clean documents: its columns are {seen}; they must be {wanted}")
    try:
        clean_model().validate(table, lazy=True)
    except SchemaErrors as e:
        told = [f"{name}: {check} (rows {rows})" for name, check, rows in _failures(table, e, first_row)]
        raise DataError(f"{where} does not hold clean documents: {'; '.join(told[:8])}") from None


def _failures(table: pa.Table, errors: Any, first_row: int) -> Iterator[tuple[str, str, str]]:
    import pyarrow.compute as pc

    for e in errors.schema_errors:
        check = str(getattr(e.check, "error", None) or e.check or e)
        cases = e.failure_cases
        if LENGTHS in check:
            rows = _wrong_lengths(table)
        elif UNIQUE in check:
            rows = _repeated_ids(table)
        elif UTF8 in check:
            rows = _not_utf8(table)
        elif isinstance(cases, pa.Table) and cases.num_columns and cases.column_names[0] in table.column_names:
            name = cases.column_names[0]
            rows = np.flatnonzero(pc.is_in(table[name], value_set=cases[name].combine_chunks()).to_numpy()).tolist()
        else:
            rows = []
        shown = ", ".join(str(first_row + r) for r in rows[:5]) + (
            f" and {len(rows) - 5} more" if len(rows) > 5 else ""
        )
        yield getattr(e.schema, "name", None) or "table", check, shown or "all"


class PartWriter:
    """Writes the documents of one split as `part-00000.parquet`, …; each row group is checked before that."""

    def __init__(self, folder: Path) -> None:
        make_folder(folder)
        self._folder = folder
        self._rows: list[tuple] = []
        self._buffered = 0
        self._part_bytes = self._part_rows = 0
        self._parts = 0
        self._file: ExitStack | None = None  # the open part
        self._writer: pq.ParquetWriter | None = None
        self.documents = 0
        self.bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._flush()
        finally:
            self._close()

    def _close(self) -> None:
        if self._writer:
            with self._file:
                self._writer.close()
            self._writer = None

    def add(self, name: str, data: bytes, source: str, lang: str) -> None:
        self._rows.append((name, data.decode(), source, lang, len(data)))
        self._buffered += len(data)
        self.documents += 1
        self.bytes += len(data)
        if len(self._rows) >= GROUP_ROWS or self._buffered >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if not self._rows:
            return
        table = pa.Table.from_arrays(
            [pa.array(c, f.type) for c, f in zip(zip(*self._rows, strict=True), COLUMNS, strict=True)], schema=COLUMNS
        )
        path = self._folder / f"part-{self._parts:05d}.parquet"
        check_documents(table, str(path), self._part_rows)
        if self._writer is None:
            self._file = ExitStack()
            self._writer = pq.ParquetWriter(
                self._file.enter_context(open_to_write(path)),
                COLUMNS,
                compression="zstd",
                compression_level=3,
                write_statistics=True,
            )
        self._writer.write_table(table, row_group_size=GROUP_ROWS)
        self._part_bytes += self._buffered
        self._part_rows += len(self._rows)
        self._rows, self._buffered = [], 0
        if self._part_bytes >= PART_BYTES:
            self._close()
            self._part_bytes, self._part_rows, self._parts = 0, 0, self._parts + 1
