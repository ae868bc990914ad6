"""The bootstrap over documents, from which every interval in the project comes.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife".

Documents are drawn, not tokens, because the tokens of one document depend on each other. The draws are a function of
the seed and the number of documents only: every caller that uses the same seed on the same documents sees the same
draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Self

import numpy as np

from foundry.utils.records import Record

COUNTS = 1 << 20  # that exist at a time: 8 MiB


class Interval(Record):
    """A measured number with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def rounded(cls, value: float, low: float, high: float, digits: int) -> Self:
        """All three numbers rounded to `digits` digits after the point."""
        return cls(value=round(float(value), digits), low=round(float(low), digits), high=round(float(high), digits))


def bootstrap(
    statistic: Callable[[np.ndarray], float | np.ndarray], documents: int, resamples: int, seed: int
) -> np.ndarray:
    """Computes a statistic on resampled documents.

    Args:
        statistic: takes the numbers of the drawn documents, int64 (documents,), with repetitions; returns a number or
            an array of one shape. NaN marks a draw in which nothing was counted.
        documents: how many there are; each draw has as many, with replacement.

    Returns:
        float64 (resamples, *shape of the statistic).
    """
    rng = np.random.default_rng(seed)
    return np.array([statistic(rng.integers(0, documents, documents)) for _ in range(resamples)], np.float64)


def bootstrap_counts(documents: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each document is in each draw of `bootstrap`, for statistics that are sums over documents.

    Yields:
        float64 (some draws, documents); the draws in their order.
    """
    rng = np.random.default_rng(seed)
    at_a_time = max(1, COUNTS // documents)
    for first in range(0, resamples, at_a_time):
        draws = min(at_a_time, resamples - first)
        drawn = rng.integers(0, documents, (draws, documents)) + documents * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * documents)
        yield counts.reshape(draws, documents).astype(np.float64)


def percentiles_95(draws: np.ndarray) -> tuple[float, float]:
    """The lower and upper end of the 95 % percentile interval of draws (resamples,); NaN is left out."""
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)
