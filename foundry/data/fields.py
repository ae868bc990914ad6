"""The side table of the clean stage: fields of the records that are not in the documents' texts, by `doc_id`.

A source names them (`fields:`). Only documents that are kept are in the table, each in the split of its document, in
the same order; the strings are cleaned as the texts are. The table is an out of its own, so that nothing that is made
from the texts depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError
from foundry.data.schema import GROUP_BYTES, GROUP_ROWS
from foundry.utils.files import make_folder, open_to_write

FIELDS = pa.schema([("doc_id", pa.string()), ("source", pa.string()), ("fields", pa.string())])


@dataclass(frozen=True)
class DocumentFields:
    """The fields of a document: {name: JSON value}, without those that its record lacks."""

    doc_id: str
    source: str
    fields: dict[str, Any]


class FieldsWriter:
    """Writes the table of one split, `{split}.parquet`; a split without fields has a table without rows."""

    def __init__(self, folder: Path, split: str) -> None:
        make_folder(folder)
        self._stack = ExitStack()
        file = self._stack.enter_context(open_to_write(folder / f"{split}.parquet"))
        writer = pq.ParquetWriter(file, FIELDS, compression="zstd", compression_level=3)
        self._writer = self._stack.enter_context(writer)
        self._rows: list[tuple[str, str, str]] = []
        self._buffered = 0

    def __enter__(self) -> FieldsWriter:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._stack:
            if kind is None:
                self._flush()

    def add(self, doc_id: str, source: str, fields: str) -> None:
        """Adds a document; `fields` is a JSON object."""
        self._rows.append((doc_id, source, fields))
        self._buffered += len(fields)
        if len(self._rows) >= GROUP_ROWS or self._buffered >= GROUP_BYTES:
            self._flush()

    def _flush(self) -> None:
        if self._rows:
            columns = [pa.array(c, pa.string()) for c in zip(*self._rows, strict=True)]
            self._writer.write_table(pa.Table.from_arrays(columns, schema=FIELDS), row_group_size=GROUP_ROWS)
        self._rows, self._buffered = [], 0


def read_fields(folder: Path, split: str) -> Iterator[DocumentFields]:
    """The documents of a split that have fields, in the order of the split.

    Raises:
        DataError: if the table is missing, damaged, or is not one of fields.
    """
    path = folder / f"{split}.parquet"
    try:
        with pq.ParquetFile(path) as table:
            if not table.schema_arrow.equals(FIELDS):
                raise DataError(f"{path} is not a table of fields; run the clean stage again")
            for batch in table.iter_batches(GROUP_ROWS):
                for row in batch.to_pylist():
                    yield DocumentFields(row["doc_id"], row["source"], json.loads(row["fields"]))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; run the clean stage (python -m stages.clean)") from None
    except (pa.ArrowException, OSError, ValueError) as e:
        raise DataError(f"{path} is not readable ({e}); run the clean stage again") from e
