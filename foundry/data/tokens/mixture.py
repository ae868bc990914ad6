"""Sources as often as their weights say: exact in every epoch, and in the long run the same for each unit of a source.

A source of `n` units (tokens, or packed rows) and weight `w` gives round(n*w) units to every epoch: floor(w) whole copies and, for the
fraction, a slice that goes round the source and begins where the slice of the epoch before ended. Epochs are therefore all of the
same length, and with w = 1/4 four epochs read each unit once.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np


class Mixture:
    """Numbers the units of all sources in an epoch: source by source, copy by copy.

    Args:
        totals: units of each source.
        weights: how often a source counts in an epoch.

    Attributes:
        size: units of an epoch.
    """

    def __init__(self, totals: list[int], weights: list[float]) -> None:
        self._totals = totals
        self._units = [round(n * w) for n, w in zip(totals, weights, strict=True)]
        self.size = sum(self._units)
        self.runs = lru_cache(maxsize=4)(self._runs)

    def _runs(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs of neighbouring units in an epoch.

        Returns:
            Where each begins in the epoch, and the end (int64, one more); the source of each; its first unit in the source.
        """
        lengths, sources, firsts = [0], [], []
        for source, (n, units) in enumerate(zip(self._totals, self._units, strict=True)):
            if not units:
                continue
            copies, rest = divmod(units, n)
            at = epoch * rest % n
            for first, length in [*[(0, n)] * copies, (at, min(rest, n - at)), (0, rest - min(rest, n - at))]:
                if length:
                    lengths.append(length)
                    sources.append(source)
                    firsts.append(first)
        return np.cumsum(lengths, dtype=np.int64), np.array(sources, np.int64), np.array(firsts, np.int64)
