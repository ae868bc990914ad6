"""Bootstrap intervals of ratios of sums over documents (Efron 1979)."""

from __future__ import annotations

import numpy as np

from foundry.utils.bootstrap import bootstrap, percentiles_95

Interval = dict[str, float]


def ratio_intervals(
    above: np.ndarray, below: np.ndarray, resamples: int, seed: int, digits: int = 4
) -> list[Interval | None]:
    """{value, low, high} of each column's sum(above) / sum(below), with the 95 % percentile interval over documents.

    Args:
        above, below: float (documents, columns); documents are drawn whole, all columns of one together.
        resamples: how often documents are drawn with replacement.

    Returns:
        None for a column of which no document has a part.
    """
    n = len(above)

    def ratios(drawn: np.ndarray) -> np.ndarray:
        times = np.bincount(drawn, minlength=n).astype(np.float64)
        over = times @ below
        return np.divide(times @ above, over, out=np.full(len(over), np.nan), where=over > 0)

    draws = bootstrap(ratios, n, resamples, seed)
    out: list[Interval | None] = []
    for column in range(above.shape[1]):
        total = below[:, column].sum()
        if not total > 0:
            out.append(None)
            continue
        low, high = percentiles_95(draws[:, column])
        value = above[:, column].sum() / total
        out.append({k: round(float(v), digits) for k, v in (("value", value), ("low", low), ("high", high))})
    return out


def ratio_interval(above: np.ndarray, below: np.ndarray, resamples: int, seed: int, digits: int = 4) -> Interval | None:
    """The same of one column: float (documents,)."""
    above, below = (np.asarray(x, np.float64)[:, None] for x in (above, below))
    return ratio_intervals(above, below, resamples, seed, digits)[0]
