"""Tables of answers, made by hand."""

import pyarrow as pa

from foundry.chat.table import SCHEMA


def answers(exact, task="spell", seen=True, unit=None, **columns):
    """A table with one row per entry of `exact`; other columns are one value or a list."""
    n = len(exact)
    defaults = {
        "prompt": [f"p{i:04}" for i in range(n)],
        "unit": unit or [f"u{i:04}" for i in range(n)],
        "task": task,
        "seen": seen,
        "judged": True,
        "primary": True,
        "exact": exact,
        "score": [float(e) for e in exact],
        "ended": True,
        "tokens": 5,
        "nats": 8.0,
        "bytes": 10,
        "answer": "one two three four",
    }
    rows = {k: v if isinstance(v, list) else [v] * n for k, v in {**defaults, **columns}.items()}
    return pa.table(rows, schema=SCHEMA)
