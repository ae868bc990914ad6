"""The file of examples, `data/chat/SPLIT/examples.parquet`: one row per example, in order. Imports no torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from foundry.chat.example import Example, Split, Turn
from foundry.config import DataError
from foundry.utils.files import atomic_write

NAME = "examples.parquet"
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


def write_examples(folder: str | Path, split: Split, examples: Iterable[Example]) -> None:
    """Writes the examples of a split; the same examples give the same bytes."""
    rows = [{**asdict(e), "arguments": json.dumps(e.arguments, ensure_ascii=False, sort_keys=True)} for e in examples]
    with atomic_write(Path(folder) / split / NAME) as f:
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), f)


def read_examples(folder: str | Path, split: Split) -> list[Example]:
    """The examples of a split.

    Raises:
        DataError: if the file is missing, damaged or has other columns.
    """
    path = Path(folder) / split / NAME
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as e:
        raise DataError(f"{path} cannot be read ({e}); run `dvc repro chat/dvc.yaml:chat_data`") from None
    if table.schema != SCHEMA:
        raise DataError(f"{path} has other columns than this version writes; run `dvc repro chat/dvc.yaml:chat_data`")
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
