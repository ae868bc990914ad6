"""Bootstrap intervals of ratios of sums over documents, such as bits per byte or the share of right answers."""

from __future__ import annotations

import numpy as np

from foundry.utils.bootstrap import Interval, bootstrap_counts, percentiles_95


def ratio_intervals(
    above: np.ndarray, below: np.ndarray, resamples: int, seed: int, digits: int = 4
) -> list[Interval | None]:
    """The ratio sum(above) / sum(below) of each column, with its 95 % percentile interval over documents.

    Args:
        above, below: float (documents, columns). Documents are drawn, each with all its columns.
        resamples: how often the documents are drawn with replacement.

    Returns:
        One interval per column; None for a column whose `below` is 0 in every document.
    """
    parts = []
    for times in bootstrap_counts(len(above), resamples, seed):
        over = times @ below
        parts.append(np.divide(times @ above, over, out=np.full(over.shape, np.nan), where=over > 0))
    draws = np.concatenate(parts)
    out: list[Interval | None] = []
    for column in range(above.shape[1]):
        total = below[:, column].sum()
        if not total > 0:
            out.append(None)
            continue
        out.append(Interval.rounded(above[:, column].sum() / total, *percentiles_95(draws[:, column]), digits))
    return out


def ratio_interval(above: np.ndarray, below: np.ndarray, resamples: int, seed: int, digits: int = 4) -> Interval | None:
    """`ratio_intervals` of one column: float (documents,)."""
    above, below = (np.asarray(x, np.float64)[:, None] for x in (above, below))
    return ratio_intervals(above, below, resamples, seed, digits)[0]
