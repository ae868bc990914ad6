"""The table of a model's answers, `artifacts/chat/evaluation/NAME.parquet`: one row per prompt. Imports no torch.

Two models are compared by these tables, see `foundry.chat.measures`.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError

SCHEMA = pa.schema(
    {
        "prompt": pa.string(),  # hash of the conversation up to the answer
        "unit": pa.string(),  # what is drawn by the bootstrap: the document, or the prompt if it has none
        "task": pa.string(),
        "seen": pa.bool_(),  # whether the training had this wording
        "judged": pa.bool_(),  # whether a verifier judged the answer
        "primary": pa.bool_(),  # whether its verdict is right or wrong, so that it counts in the primary metric
        "exact": pa.bool_(),  # whether it accepted the answer in full; false without a verifier
        "score": pa.float64(),  # of the verifier, in [0, 1]; 0 without one
        "ended": pa.bool_(),  # whether the model ended the answer by itself
        "tokens": pa.int64(),  # of the answer, without the symbol that ended it
        "nats": pa.float64(),  # negative log likelihood of the text of the reference answer; 0 without one
        "bytes": pa.int64(),  # UTF-8 bytes of that text; 0 without one
        "answer": pa.string(),
    }
)


def read_answers(path: str | Path) -> pa.Table:
    """Reads the table of a model's answers.

    Raises:
        DataError: if the file cannot be read, is another table, has no row, or has numbers that no evaluation writes.
    """
    again = "run `dvc repro chat/dvc.yaml:chat_evaluate`"
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path} cannot be read ({e}): {again}") from None
    if missing := [c for c in SCHEMA.names if c not in table.column_names]:
        raise DataError(f"{path} has no column {', '.join(missing)}: it is not a table of answers; {again}")
    try:
        table = table.select(SCHEMA.names).cast(SCHEMA)
    except pa.ArrowException as e:
        raise DataError(f"{path} has a column of another type ({e}): {again}") from None
    if not len(table):
        raise DataError(f"{path} contains no answer: {again}")
    score, nats = table["score"].to_numpy(), table["nats"].to_numpy()
    if not (np.isfinite(nats).all() and (nats >= 0).all() and (score >= 0).all() and (score <= 1).all()):
        raise DataError(f"{path} contains scores outside [0, 1], or losses that are not finite: it is damaged; {again}")
    if len(set(table["prompt"].to_pylist())) < len(table):
        raise DataError(f"{path} contains a prompt twice: it is damaged; {again}")
    return table


def same_prompts(a: pa.Table, b: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Two tables in one order of their prompts.

    Raises:
        DataError: if they are not of the same prompts with the same tasks.
    """
    a, b = a.sort_by("prompt"), b.sort_by("prompt")
    for name in ("prompt", "task", "unit", "primary"):
        if a[name].to_pylist() != b[name].to_pylist():
            mine, theirs = set(a["prompt"].to_pylist()), set(b["prompt"].to_pylist())
            raise DataError(
                f"the models did not answer the same prompts: {len(mine & theirs)} in common, "
                f"{len(mine - theirs)} only of the first, {len(theirs - mine)} only of the second; evaluate both on "
                "one test split"
            )
    return a, b
