"""The file of examples, `data/chat/SPLIT/examples.parquet`: one row per example, in order. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.chat.example import Example, Split, Turn
from foundry.chat.index import AGAIN, read_index
from foundry.config import DataError
from foundry.utils.files import atomic_write, sha256_file

FILE = "examples.parquet"
SCHEMA = pa.schema(
    {
        "messages": pa.list_(pa.struct({"role": pa.string(), "content": pa.string(), "train": pa.bool_()})),
        "task": pa.string(),
        "source": pa.string(),
        "doc_id": pa.string(),
        "wording": pa.int32(),
        "split": pa.string(),
        "verifier": pa.string(),
        "arguments": pa.string(),  # JSON
        "license": pa.string(),
    }
)


def write_examples(folder: str | Path, split: Split, examples: Iterable[Example]) -> str:
    """Writes the examples of a split, and returns the hash of the file; the same examples give the same bytes.

    Raises:
        DataError: if an example is of another split.
    """
    rows = []
    for e in examples:
        if e.split != split:
            raise DataError(f"an example of the split {e.split} (task {e.task}) cannot be written to {split}")
        values = {name: getattr(e, name) for name in SCHEMA.names}  # `asdict` copies every value: ten times slower
        values["messages"] = [{"role": t.role, "content": t.content, "train": t.train} for t in e.messages]
        rows.append({**values, "arguments": json.dumps(dict(e.arguments), ensure_ascii=False, sort_keys=True)})
    path = Path(folder) / split / FILE
    with atomic_write(path) as f:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), f, compression="zstd")
    return sha256_file(path)


def read_examples(folder: str | Path, split: Split) -> list[Example]:
    """The examples of a split, verified by the hash in the index.

    Raises:
        DataError: if the file or the index is missing, or the file was changed or has other columns.
    """
    path = Path(folder) / split / FILE
    expected = read_index(folder).splits[split].examples_sha256
    if not path.is_file():
        raise DataError(f"{path} is missing: {AGAIN}")
    if (seen := sha256_file(path)) != expected:
        raise DataError(
            f"{path} was changed after it was written (sha256 {seen[:12]}…, the index says {expected[:12]}…): {AGAIN}"
        )
    table = pq.read_table(path)
    if table.schema != SCHEMA:
        raise DataError(f"{path} has other columns than this version writes: {AGAIN}")
    return [
        Example(
            **{
                **row,
                "messages": tuple(Turn(**turn) for turn in row["messages"]),
                "arguments": json.loads(row["arguments"]),
            }
        )
        for row in table.to_pylist()
    ]
