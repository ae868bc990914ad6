"""Paired comparison of two models on the same documents, by their losses on each document. Imports no torch.

Both models read the same text, so the difficulty of a document cancels out: the interval of the difference is several
times narrower than the intervals of the two numbers. `foundry.evaluation.losses` describes the tables.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from foundry.config import DataError
from foundry.utils.bootstrap import bootstrap, percentiles_95


@dataclass(frozen=True)
class Difference:
    """Bits per byte of B minus those of A: negative where B is better.

    Attributes:
        value, low, high: the difference with its 95 % interval.
        win_rate: share of the documents on which B has the smaller loss; a tie counts half.
    """

    bits_a: float
    bits_b: float
    value: float
    low: float
    high: float
    win_rate: float
    documents: int


@dataclass(frozen=True)
class Comparison:
    """A verdict on B.

    Attributes:
        p_value: two-sided: how often flipping the signs of the documents' differences at random gives a total as large.
        verdict: "better", "worse" or "not distinguishable".
    """

    overall: Difference
    p_value: float
    verdict: str
    by_source: dict[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def sentence(self) -> str:
        d = self.overall
        return (
            f"{self.verdict}: {d.bits_b:.4f} against {d.bits_a:.4f} bits per byte, difference {d.value:+.4f} "
            f"(95 % {d.low:+.4f} to {d.high:+.4f}), better on {d.win_rate:.0%} of {d.documents} documents, "
            f"p = {self.p_value:.2g}"
        )


def compare_documents(a: pa.Table, b: pa.Table, resamples: int = 2000, seed: int = 1) -> Comparison:
    """Compares B with A.

    The interval is the 95 % percentile bootstrap over documents (Efron 1979) that keeps the two losses of a document
    together; the p-value is that of the sign-flip permutation test (Fisher 1935). B is better if the whole interval is
    below zero, worse if it is above.

    Raises:
        DataError: if the tables are not of the same documents.
    """
    a, b = a.sort_by("doc_id"), b.sort_by("doc_id")
    if a["doc_id"].to_pylist() != b["doc_id"].to_pylist() or a["n_bytes"].to_pylist() != b["n_bytes"].to_pylist():
        mine, theirs = set(a["doc_id"].to_pylist()), set(b["doc_id"].to_pylist())
        raise DataError(
            f"the models were not scored on the same text: {len(mine & theirs)} documents in common, "
            f"{len(mine - theirs)} only with the first, {len(theirs - mine)} only with the second; "
            "score both on one test split"
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
    return Comparison(overall, sign_flips(bits_b - bits_a, resamples, seed), verdict, by_source)


def _difference(bits_a: np.ndarray, bits_b: np.ndarray, n_bytes: np.ndarray, resamples: int, seed: int) -> Difference:
    gap, n = bits_b - bits_a, len(n_bytes)
    draws = bootstrap(lambda drawn: gap[drawn].sum() / n_bytes[drawn].sum(), n, resamples, seed)
    low, high = percentiles_95(draws)
    wins = ((gap < 0).sum() + (gap == 0).sum() / 2) / n
    values = (bits_a.sum() / n_bytes.sum(), bits_b.sum() / n_bytes.sum(), gap.sum() / n_bytes.sum(), low, high, wins)
    return Difference(*(round(float(v), 6) for v in values), documents=n)


def sign_flips(gap: np.ndarray, resamples: int, seed: int) -> float:
    """The p-value of the sign-flip test of the documents' differences."""
    rng, observed = np.random.default_rng(seed), abs(gap.sum())
    hits = sum(abs((gap * rng.choice((-1.0, 1.0), len(gap))).sum()) >= observed * (1 - 1e-12) for _ in range(resamples))
    return (hits + 1) / (resamples + 1)
