"""Filters of candidates: which tokens may still be drawn.

Every function gets the N >= 1 candidates of one row and returns which of them stay, bool (N,), at least one. `scores`
are logits minus the largest one, divided by the temperature, float32 (N,); `weights` are exp(scores), float32 (N,), and
so proportional to the probabilities. Sums over candidates are float64.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def top_n_sigma(scores: Floats, n: float) -> Bools:
    """Logits of at least max - n standard deviations (of the population), as in llama.cpp (arXiv:2411.07641)."""
    return scores >= np.float32(-n * scores.std(dtype=np.float64))


def top_k(scores: Floats, k: int) -> Bools:
    """The k largest, and all that tie with the k-th."""
    n = len(scores)
    return scores >= np.partition(scores, n - k)[n - k] if k < n else np.ones(n, dtype=bool)


def top_p(weights: Floats, p: float) -> Bools:
    """The smallest set of the largest whose share reaches p (arXiv:1904.09751); of equal ones, those with lower ids."""
    needed = p * float(_sum(weights))
    ordered = np.sort(_largest(weights, needed))[::-1]
    last = min(int(np.searchsorted(np.cumsum(ordered, dtype=np.float64), needed)), len(ordered) - 1)
    threshold = ordered[last]
    keep = weights > threshold
    ties = np.flatnonzero(weights == threshold)
    keep[ties[: last + 1 - np.count_nonzero(keep)]] = True
    return keep


def _largest(weights: Floats, needed: float) -> Floats:
    """Some number of the largest whose sum reaches `needed`, in any order. To sort a vocabulary would cost most."""
    n, size = len(weights), 128
    while size < n:
        largest = np.partition(weights, n - size)[n - size :]
        if _sum(largest) >= needed:
            return largest
        size *= 8
    return weights


def min_p(weights: Floats, share: float) -> Bools:
    """Those with at least this share of the largest probability (arXiv:2407.01082)."""
    return weights >= np.float32(share) * weights.max()


def typical_p(scores: Floats, weights: Floats, p: float) -> Bools:
    """Those whose surprise is closest to the entropy until their share reaches p, and ties (arXiv:2202.00666)."""
    total = _sum(weights)
    # Surprise and entropy are the same constant minus the score and its mean.
    distance = np.abs(scores - np.float32(_sum(weights * scores) / total))
    order = np.argsort(distance)
    last = min(int(np.searchsorted(np.cumsum(weights[order], dtype=np.float64), p * total)), len(order) - 1)
    return distance <= distance[order[last]]


def entropy_share(scores: Floats) -> float:
    """Entropy of softmax(scores) as a share of its largest possible value, ln N; 0 for a single candidate."""
    if len(scores) == 1:
        return 0.0
    below = scores - scores.max()
    weights = np.exp(below)
    total = _sum(weights)
    return float(np.clip((np.log(total) - _sum(weights * below) / total) / np.log(len(scores)), 0.0, 1.0))


def _sum(values: Floats) -> np.float64:
    """Not `np.dot`, whose BLAS may use threads and then sum in another order."""
    return values.sum(dtype=np.float64)
