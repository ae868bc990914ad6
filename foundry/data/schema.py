"""The clean documents' columns and their checks (pandera), and the one way to write them.

Parquet files are the same bytes for the same rows: fixed row groups and parts, zstd, no times. Columns are `string`,
not `large_string`: a part holds far less than 2 GiB.
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError

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
    import pyarrow.compute as pc

    class CleanDocuments(pp.DataFrameModel):
        doc_id: str = pp.Field(str_matches=r"^[0-9a-f]{16}$")
        text: str = pp.Field(str_length={"min_value": 1})
        source: str = pp.Field(str_matches=r"^[a-z0-9][a-z0-9._-]*$")
        lang: str = pp.Field(str_length={"min_value": 1})
        n_bytes: int = pp.Field(ge=1)

        @pp.dataframe_check(error="n_bytes is not the length of text in UTF-8 bytes")
        def bytes_agree(cls, data: Any) -> bool:
            return pc.all(pc.equal(pc.binary_length(data.table["text"]), data.table["n_bytes"])).as_py()

        class Config:
            strict = True
            ordered = True

    return CleanDocuments


def check_documents(table: pa.Table, where: str) -> None:
    """Validates a table of clean documents.

    Raises:
        DataError: with the checks that failed.
    """
    from pandera.errors import SchemaErrors

    try:
        clean_model().validate(table, lazy=True)
    except SchemaErrors as e:
        failed = [
            f"{x['column']}: {x['error']}" for kind in e.message.values() for cases in kind.values() for x in cases
        ]
        raise DataError(f"{where} does not hold clean documents: {'; '.join(failed[:5])}") from None


class PartWriter:
    """Writes the documents of one split as `part-00000.parquet`, …; each row group is checked before that."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True)
        self._folder = folder
        self._rows: list[tuple] = []
        self._buffered = 0
        self._part_bytes = 0
        self._parts = 0
        self._writer: pq.ParquetWriter | None = None
        self.documents = 0
        self.bytes = 0

    def __enter__(self) -> PartWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self._flush()
        if self._writer:
            self._writer.close()

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
        check_documents(table, str(path))
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                path, COLUMNS, compression="zstd", compression_level=3, write_statistics=True
            )
        self._writer.write_table(table, row_group_size=GROUP_ROWS)
        self._part_bytes += self._buffered
        self._rows, self._buffered = [], 0
        if self._part_bytes >= PART_BYTES:
            self._writer.close()
            self._writer, self._part_bytes, self._parts = None, 0, self._parts + 1
