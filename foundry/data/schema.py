"""The columns of clean documents, their checks (pandera), and the one way to write them.

Parquet files are the same bytes for the same rows: fixed row groups and parts, zstd, no times. Columns are `string`,
not `large_string`: a part contains far less than 2 GiB.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from foundry.config import DataError
from foundry.utils.files import make_folder, open_to_write

if TYPE_CHECKING:
    from pandera.errors import SchemaError

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


def doc_id(data: bytes) -> str:
    """Name of a document: the first 16 hexadecimal digits of the sha256 of its UTF-8 text."""
    return hashlib.sha256(data).hexdigest()[:16]


DOC_ID, SOURCE = r"^[0-9a-f]{16}$", r"^[a-z0-9][a-z0-9._-]*$"


@cache
def clean_documents() -> Any:
    """The pandera model of `data/clean/*/part-*.parquet`; imported on first use, since pandera costs a second."""
    import pandera.pyarrow as pp

    class CleanDocuments(pp.DataFrameModel):
        doc_id: str = pp.Field(str_matches=DOC_ID, unique=True)
        text: str = pp.Field(str_length={"min_value": 1})
        source: str = pp.Field(str_matches=SOURCE)
        lang: str = pp.Field(str_length={"min_value": 1})
        n_bytes: int = pp.Field(ge=1)

        @pp.dataframe_check(error="n_bytes is not the length of text in UTF-8 bytes")
        def lengths_agree(cls, data: Any) -> pa.ChunkedArray:
            return pc.fill_null(pc.equal(pc.binary_length(data.table["text"]), data.table["n_bytes"]), False)

        class Config:
            strict = True
            ordered = True

    return CleanDocuments


def check_documents(table: pa.Table, where: str, first_row: int = 0) -> None:
    """Validates a table of clean documents.

    Args:
        table: the documents.
        where: the file that messages name.
        first_row: number of the table's first row in that file.

    Raises:
        DataError: with the checks that failed and the rows that fail them.
    """
    if not table.schema.equals(COLUMNS):
        seen, wanted = (", ".join(f"{f.name} {f.type}" for f in s) for s in (table.schema, COLUMNS))
        raise DataError(f"{where} does not contain clean documents: its columns are {seen}; they must be {wanted}")
    failed: list[tuple[str, np.ndarray]] = []
    if not _is_utf8(table["text"]):  # pandera cannot show such a row
        wrong = [not _is_utf8(table["text"].slice(row, 1)) for row in range(len(table))]
        failed = [("text is not valid UTF-8", np.array(wrong))]
    elif not _certainly_clean(table):
        from pandera.errors import SchemaErrors

        try:
            clean_documents().validate(table, lazy=True)
        except SchemaErrors as e:
            failed = [_failed(table, error) for error in e.schema_errors[:8]]
    if failed:
        problems = "; ".join(f"{check} (rows {_first_rows(wrong, first_row)})" for check, wrong in failed)
        raise DataError(f"{where} does not contain clean documents: {problems}")


def _certainly_clean(table: pa.Table) -> bool:
    """Whether the model of clean documents surely accepts a table; if not, pandera decides, and names what is wrong.

    Without the import of pandera, which took 0.9 s in each worker process.
    """
    if any(column.null_count for column in table.columns):
        return False
    doc_id, text, source, lang, n_bytes = table.columns
    return (
        pc.count_distinct(doc_id).as_py() == len(table)
        and pc.all(pc.match_substring_regex(doc_id, DOC_ID), min_count=0).as_py()
        and pc.all(pc.match_substring_regex(source, SOURCE), min_count=0).as_py()
        and pc.all(pc.equal(pc.binary_length(text), n_bytes), min_count=0).as_py()
        and pc.all(pc.greater_equal(n_bytes, 1), min_count=0).as_py()
        and pc.all(pc.greater_equal(pc.binary_length(lang), 1), min_count=0).as_py()
    )


def _is_utf8(texts: pa.ChunkedArray) -> bool:
    try:
        texts.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _failed(table: pa.Table, error: SchemaError) -> tuple[str, np.ndarray]:
    """A failed check, and which rows fail it: pandera gives values of the column, or one bool per row of the table."""
    column = error.schema.name
    if column in table.column_names:
        wrong = pc.is_in(table[column], value_set=error.failure_cases[column].combine_chunks())
    else:
        wrong = pc.invert(error.check_output.to_native()["check_output"])
    return f"{column}: {getattr(error.check, 'error', None) or error.check}", wrong.to_numpy()


def _first_rows(wrong: np.ndarray, first_row: int) -> str:
    rows = (np.flatnonzero(wrong) + first_row).tolist()
    return ", ".join(map(str, rows[:5])) + (f" and {len(rows) - 5} more" if len(rows) > 5 else "")


class PartWriter:
    """Writes the documents of one split as `part-00000.parquet`, …; each row group is checked before it is written."""

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
