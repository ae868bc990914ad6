"""Paired comparison of two models on the same documents, from what each paid for every one of them. Imports no torch.

Both models read the same text, so the difficulty of a document cancels: the interval of the difference is several times narrower than the
intervals of the two numbers. The table of a model (`artifacts/evaluation/documents.parquet`) holds a row a document: doc_id, source, lang,
n_bytes, tokens, nats.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError
from foundry.utils.bootstrap import bootstrap, percentiles_95

COLUMNS = ("doc_id", "source", "lang", "n_bytes", "tokens", "nats")


@dataclass(frozen=True)
class Difference:
    """Bits per byte of B less that of A: negative where B is better."""

    bits_a: float
    bits_b: float
    value: float
    low: float
    high: float
    win_rate: float  # of documents on which B pays less; a tie counts half
    documents: int


@dataclass(frozen=True)
class Comparison:
    overall: Difference
    p_value: float  # two-sided: how often chance alone gives a difference as large, by flipping signs
    verdict: str  # of B: "better", "worse" or "not distinguishable"
    by_source: dict[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        d = self.overall
        return (
            f"{self.verdict}: {d.bits_b:.4f} against {d.bits_a:.4f} bits per byte, difference {d.value:+.4f} "
            f"(95 % {d.low:+.4f} to {d.high:+.4f}), better on {d.win_rate:.0%} of {d.documents} documents, p = {self.p_value:.2g}"
        )


def read_documents(path: str | Path) -> pa.Table:
    """The table of a model's losses.

    Raises:
        DataError: if it cannot be read, lacks a column, is empty, or holds a loss that is not a finite number of nats.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as e:
        raise DataError(f"{path} cannot be read ({e}): run `dvc repro evaluate`") from None
    if missing := [c for c in COLUMNS if c not in table.column_names]:
        raise DataError(f"{path} has no column {', '.join(missing)}: it is no table of losses by document")
    nats = table["nats"].to_numpy()
    if not len(nats):
        raise DataError(f"{path} holds no document")
    if not np.isfinite(nats).all() or (nats < 0).any():
        raise DataError(
            f"{path} holds losses that are not finite and positive: it is damaged, run `dvc repro evaluate`"
        )
    return table


def compare_documents(a: pa.Table, b: pa.Table, resamples: int = 2000, seed: int = 1) -> Comparison:
    """Compares B with A.

    The interval is the 95 % percentile bootstrap over documents (Efron 1979), pairs kept together; the p-value that of the sign-flip permutation
    test (Fisher 1935). B is better if the interval lies below zero, worse if above.

    Raises:
        DataError: if the tables are not of the same documents.
    """
    a, b = a.sort_by("doc_id"), b.sort_by("doc_id")
    if a["doc_id"].to_pylist() != b["doc_id"].to_pylist() or a["n_bytes"].to_pylist() != b["n_bytes"].to_pylist():
        mine, theirs = set(a["doc_id"].to_pylist()), set(b["doc_id"].to_pylist())
        raise DataError(
            f"the models were not scored on the same text: {len(mine & theirs)} documents in common, {len(mine - theirs)} only with the first, "
            f"{len(theirs - mine)} only with the second; score both on one test split"
        )
    bits_a, bits_b = (t["nats"].to_numpy() / math.log(2) for t in (a, b))
    n_bytes = a["n_bytes"].to_numpy().astype(np.float64)
    sources = np.array(a["source"].to_pylist())
    overall = _difference(bits_a, bits_b, n_bytes, resamples, seed)
    verdict = "better" if overall.high < 0 else "worse" if overall.low > 0 else "not distinguishable"
    by_source = {
        s: _difference(bits_a[at], bits_b[at], n_bytes[at], resamples, seed)
        for s in dict.fromkeys(sources.tolist())
        for at in [sources == s]
    }
    return Comparison(overall, _sign_flips(bits_b - bits_a, resamples, seed), verdict, by_source)


def _difference(bits_a: np.ndarray, bits_b: np.ndarray, n_bytes: np.ndarray, resamples: int, seed: int) -> Difference:
    gap, n = bits_b - bits_a, len(n_bytes)
    draws = bootstrap(lambda drawn: gap[drawn].sum() / n_bytes[drawn].sum(), n, resamples, seed)
    low, high = percentiles_95(draws)
    wins = ((gap < 0).sum() + (gap == 0).sum() / 2) / n
    values = (bits_a.sum() / n_bytes.sum(), bits_b.sum() / n_bytes.sum(), gap.sum() / n_bytes.sum(), low, high, wins)
    return Difference(*(round(float(v), 6) for v in values), documents=n)


def _sign_flips(gap: np.ndarray, resamples: int, seed: int) -> float:
    rng, seen = np.random.default_rng(seed), abs(gap.sum())
    hits = sum(abs((gap * rng.choice((-1.0, 1.0), len(gap))).sum()) >= seen * (1 - 1e-12) for _ in range(resamples))
    return (hits + 1) / (resamples + 1)
