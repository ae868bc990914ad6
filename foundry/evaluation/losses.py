"""The table of a model's losses, `artifacts/evaluation/documents.parquet`: one row per test document. Imports no torch.

Two models are compared by these tables: see `foundry.evaluation.compare`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError

if TYPE_CHECKING:
    from foundry.evaluation.bits_per_byte import Scores
    from foundry.evaluation.documents import Documents

SCHEMA = pa.schema(
    {
        "doc_id": pa.string(),
        "source": pa.string(),
        "lang": pa.string(),
        "n_bytes": pa.int64(),  # UTF-8 bytes of the raw text
        "tokens": pa.int64(),  # of the text, without begin and end symbol
        "nats": pa.float64(),  # negative log likelihood of the text
    }
)


def losses_table(documents: Documents, scores: Scores) -> pa.Table:
    """The losses of one model, in the order of the documents."""
    d = documents
    return pa.table([d.doc_ids, d.sources, d.langs, d.n_bytes, scores.tokens, scores.nats], schema=SCHEMA)


def read_losses(path: str | Path) -> pa.Table:
    """Reads the table of a model's losses.

    Raises:
        DataError: if the file cannot be read, lacks a column, has one of another type, has no row, or has a loss that
            is not a finite number of nats.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path} cannot be read ({e}): run `dvc repro evaluate`") from None
    if missing := [c for c in SCHEMA.names if c not in table.column_names]:
        raise DataError(
            f"{path} has no column {', '.join(missing)}: it is not a table of losses by document "
            "(artifacts/evaluation/documents.parquet)"
        )
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowException as e:
        raise DataError(f"{path} has a column of another type ({e}): run `dvc repro evaluate`") from None
    nats = table["nats"].to_numpy()
    if not len(nats):
        raise DataError(f"{path} contains no document: run `dvc repro evaluate`")
    if not np.isfinite(nats).all() or (nats < 0).any():
        raise DataError(
            f"{path} contains losses that are not finite and positive: it is damaged, run `dvc repro evaluate`"
        )
    return table
