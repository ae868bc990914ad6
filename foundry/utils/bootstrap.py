"""The bootstrap over documents, from which every interval in the project comes.

Source: Efron 1979, "Bootstrap methods: another look at the jackknife".

Documents are drawn, not tokens, because the tokens of one document depend on each other. The draws are a function of
the seed and the number of documents only: every caller that uses the same seed on the same documents sees the same
draws.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import numpy as np

from foundry.utils.records import Record


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


def percentiles_95(draws: np.ndarray) -> tuple[float, float]:
    """The lower and upper end of the 95 % percentile interval of draws (resamples,); NaN is left out."""
    low, high = np.nanpercentile(draws, (2.5, 97.5))
    return float(low), float(high)
