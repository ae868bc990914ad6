"""How often an epoch reads each source: exactly by the weights, and in the long run equally often for each item of a
source.

Items are tokens, or packed rows. A source of `n` items and weight `w` gives round(n*w) items to every epoch: floor(w)
complete copies and, for the fraction, a slice that goes round the source and begins where the slice of the epoch before
ended. Epochs are therefore all of the same length, and with w = 1/4 four epochs read each item once.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np


class SourceSlices(NamedTuple):
    """The slices of sources that an epoch consists of.

    Attributes:
        starts: where each begins in the epoch, and the end: int64, one more.
        sources: the source of each: int64.
        firsts: its first item in the source: int64.
    """

    starts: np.ndarray
    sources: np.ndarray
    firsts: np.ndarray


class Mixture:
    """Numbers the items of all sources in an epoch: source by source, copy by copy.

    Args:
        totals: items of each source.
        weights: how often an epoch reads each source.

    Attributes:
        size: items of an epoch.
        slices: the `SourceSlices` of an epoch, by its number.
    """

    def __init__(self, totals: list[int], weights: list[float]) -> None:
        self._totals = totals
        self._per_epoch = [round(n * w) for n, w in zip(totals, weights, strict=True)]
        self.size = sum(self._per_epoch)
        self.slices = lru_cache(maxsize=4)(self._slices)

    def _slices(self, epoch: int) -> SourceSlices:
        lengths, sources, firsts = [0], [], []
        for source, (n, items) in enumerate(zip(self._totals, self._per_epoch, strict=True)):
            if not items:
                continue
            copies, rest = divmod(items, n)
            at = epoch * rest % n
            for first, length in [*[(0, n)] * copies, (at, min(rest, n - at)), (0, rest - min(rest, n - at))]:
                if length:
                    lengths.append(length)
                    sources.append(source)
                    firsts.append(first)
        starts = np.cumsum(lengths, dtype=np.int64)
        return SourceSlices(starts, np.array(sources, np.int64), np.array(firsts, np.int64))
