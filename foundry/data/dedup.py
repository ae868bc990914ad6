"""Duplicates: exact ones by hash, near ones by MinHash LSH and a check of the real similarity.

The similarity of two documents is the Jaccard index of their sets of 5-unit shingles (units: words, or characters of
scripts without spaces). 112 permutations in 14 bands of 8 rows make candidates of a pair of similarity s with
probability 1 - (1 - s^8)^14: 0.56 at 0.7, 0.92 at 0.8, 0.9998 at 0.9 (Lee et al. 2022). Candidates are then compared
exactly, so nothing is dropped that is less similar than the threshold to a document that stays. The first document in
order stays.

Costs 112 bytes a document and, for the candidates alone, their texts read again. Broder 1997; rensa computes the
signatures.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable
from functools import lru_cache

import numpy as np

from foundry.data.rules import units

BANDS, ROWS = 14, 8
SHINGLE = 5
SEED = 1  # of the permutations: part of the method, not a parameter
BATCH = 256
MAX_CANDIDATES = 64  # compared for one document, those sharing most bands first: bounds the work on templated text


def exact_key(text: str) -> bytes:
    """The same for texts that differ in case and white space alone."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:16]


def shingles(words: list[str]) -> set[str]:
    """The 5-unit pieces of a document, given as its units."""
    if len(words) <= SHINGLE:
        return {" ".join(words)}
    return {" ".join(words[i : i + SHINGLE]) for i in range(len(words) - SHINGLE + 1)}


def jaccard(a: set[str], b: set[str]) -> float:
    return len(a & b) / len(a | b)


class NearDuplicates:
    """Collects signatures of documents in order, then tells which repeat an earlier one."""

    def __init__(self) -> None:
        self._waiting: list[list[str]] = []
        self._keys: list[np.ndarray] = []

    def add(self, words: list[str]) -> None:
        """Takes the next document, given as its units."""
        self._waiting.append(list(shingles(words)))
        if len(self._waiting) == BATCH:
            self._flush()

    def _flush(self) -> None:
        if not self._waiting:
            return
        import rensa

        rows = rensa.RMinHash.digest_matrix_from_token_sets(self._waiting, BANDS * ROWS, SEED).to_rows()
        self._keys.append(_band_keys(np.array(rows, dtype=np.uint64)))
        self._waiting = []

    def find(self, read: Callable[[int], str], threshold: float) -> dict[int, tuple[int, float]]:
        """{document: (the earlier document that stays, similarity)} for every near duplicate.

        Args:
            read: the text of a document by its number in the order of `add`.
        """
        self._flush()
        if not self._keys:
            return {}
        groups = _shared_bands(np.concatenate(self._keys))

        @lru_cache(maxsize=4 * MAX_CANDIDATES)
        def shingles_of(i: int) -> frozenset[str]:
            return frozenset(shingles(units(read(i))))

        kept: dict[int, list[int]] = defaultdict(list)  # group -> documents that stay
        found: dict[int, tuple[int, float]] = {}
        for i in sorted(groups):
            shared = Counter(j for g in groups[i] for j in kept[g])
            for j, _ in sorted(shared.items(), key=lambda x: (-x[1], x[0]))[:MAX_CANDIDATES]:
                similarity = jaccard(shingles_of(i), shingles_of(j))
                if similarity >= threshold:
                    found[i] = (j, similarity)
                    break
            else:
                for g in groups[i]:
                    kept[g].append(i)
        return found


def _band_keys(rows: np.ndarray) -> np.ndarray:
    """(documents, BANDS) uint64: each band's eight values mixed into one (multiply and shift, overflow wanted)."""
    bands = rows.reshape(len(rows), BANDS, ROWS)
    key = np.zeros(bands.shape[:2], np.uint64)
    for r in range(ROWS):
        key = (key ^ bands[:, :, r]) * np.uint64(0x9E3779B97F4A7C15)
        key ^= key >> np.uint64(29)
    return key


def _shared_bands(keys: np.ndarray) -> dict[int, list[int]]:
    """{document: groups of documents with an equal band}, for the documents that share one."""
    out: dict[int, list[int]] = defaultdict(list)
    groups = 0
    for band in range(BANDS):
        order = np.argsort(keys[:, band], kind="stable")
        values = keys[order, band]
        starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
        ends = np.r_[starts[1:], len(values)]
        for s, e in zip(starts[ends - starts > 1], ends[ends - starts > 1], strict=True):
            for i in order[s:e]:
                out[int(i)].append(groups)
            groups += 1
    return out
