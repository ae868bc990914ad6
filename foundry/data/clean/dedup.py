"""Duplicates: exact ones by hash, near ones by MinHash LSH and a check of the real similarity.

The similarity of two documents is the Jaccard index of their sets of 5-unit shingles (see `comparable` for the units). 112
permutations in 28 bands of 4 rows make candidates of a pair of similarity s with probability 1 - (1 - s^4)^28: 0.51 at 0.4,
0.84 at 0.5, 0.98 at 0.6, 0.9995 at 0.7 (Lee et al. 2022 take 14 bands of 8 rows: 0.56 at 0.7). Within one band, a document is
paired with the first one of its key and with the `NEIGHBOURS` before it, so the formula holds for keys that up to
`NEIGHBOURS` + 2 documents share; in larger groups, pairs far apart are found only through others. Candidates are then
compared exactly, so nothing is dropped that is less similar than the threshold to a document that is kept. The first document
in order is kept.

Everything global is a sort: of one 64-bit column at a time, in passes over ranges of its values, so that memory is
bounded by a parameter. What grows with the corpus is 224 + 16 bytes per document on disk and 16 bytes per candidate in memory.
Broder 1997; rensa computes the signatures.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from itertools import chain

import numpy as np

from foundry.data.text.grams import gram_hashes
from foundry.utils.splitmix import GAMMA

BANDS, ROWS = 28, 4
NEIGHBOURS = 6  # documents before it in its band's group that a document is paired with, besides the first
SHINGLE = 5
SEED = 1  # of the permutations: part of the method, not a parameter
_SORT_BYTES = 40  # of memory for each value of a pass: value, number, order, and what the sort itself takes

Column = Callable[[], Iterator[np.ndarray]]  # reads a column of all documents in order, in pieces


def exact_key(text: str) -> bytes:
    """16 bytes, the same for texts that differ in case and white space alone."""
    return hashlib.sha256(" ".join(text.split()).casefold().encode()).digest()[:16]


def shingles(words: list[str]) -> np.ndarray:
    """The distinct hashes (sorted uint64) of a document's 5-unit pieces, given as its units."""
    return np.unique(gram_hashes(words, SHINGLE))


def comparable(text: str, words: list[str]) -> list[str]:
    """The units by which a document is compared with others.

    Words are used where they make up at least a third of the text. What is mostly signs (Morse code, tables of figures in
    ASCII art, emoji) is compared by its runs of characters between white space, or by single characters where it has fewer
    than five runs: the few words of such a text say nothing about the rest.

    Args:
        text: the document.
        words: `units(text)`.
    """
    runs = text.split()
    if 3 * sum(map(len, words)) >= sum(map(len, runs)):
        return words
    return runs if len(runs) >= SHINGLE else list("".join(runs))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """Of two sets given as sorted arrays without repetition; an empty set is similar to nothing."""
    if not len(a) or not len(b):
        return 0.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def band_keys(documents: list[list[str]]) -> np.ndarray:
    """(documents, BANDS) uint64: documents, given as their units, are candidates where they share a key of one band."""
    import rensa

    pieces = _shingle_hashes(documents)
    offsets = np.zeros(len(pieces) + 1, np.uint64)
    np.cumsum([len(p) for p in pieces], out=offsets[1:])
    flat = np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, BANDS * ROWS, SEED).to_rows()
    bands = np.array(rows, np.uint64).reshape(len(documents), BANDS, ROWS)
    keys = np.zeros(bands.shape[:2], np.uint64)
    for r in range(ROWS):  # four values mixed into one: multiply and shift, overflow wanted
        keys = (keys ^ bands[:, :, r]) * GAMMA
        keys ^= keys >> np.uint64(29)
    return keys


def _shingle_hashes(documents: list[list[str]]) -> list[np.ndarray]:
    """`gram_hashes` of many documents, computed over all their units at once."""
    ends = np.cumsum([len(words) for words in documents]).tolist()
    together = gram_hashes(list(chain.from_iterable(documents)), SHINGLE)
    return [
        together[end - len(words) : end - SHINGLE + 1] if len(words) >= SHINGLE else gram_hashes(words, SHINGLE)
        for words, end in zip(documents, ends, strict=True)
    ]


def equal_pairs(column: Column, count: int, memory: int, neighbours: int = 0) -> np.ndarray:
    """(pairs, 2) int64: (earlier, later) documents of equal value.

    Each document whose value an earlier one has is paired with the first of them, and with the `neighbours` before it.

    Args:
        column: the values of all documents, uint64.
        count: of documents.
        neighbours: 0 pairs with the first only, which is enough where equality is transitive.
        memory: bytes that a pass may take; more documents take more passes over the column.
    """
    passes = max(1, -(-count * _SORT_BYTES // memory))
    found = [np.empty((0, 2), np.int64)]
    for p in range(passes):
        values, numbers, start = [], [], 0
        for piece in column():
            here = np.arange(start, start + len(piece), dtype=np.int64)
            start += len(piece)
            if passes > 1:
                mine = (piece >> np.uint64(32)) * np.uint64(passes) >> np.uint64(32) == np.uint64(p)
                piece, here = piece[mine], here[mine]
            values.append(piece)
            numbers.append(here)
        if start:
            found.append(_pairs(np.concatenate(values), np.concatenate(numbers), neighbours))
    return np.concatenate(found)


def _pairs(values: np.ndarray, numbers: np.ndarray, neighbours: int) -> np.ndarray:
    order = np.argsort(values, kind="stable")  # equal values stay in the order of documents
    values, numbers = values[order], numbers[order]
    places = np.arange(len(values))
    begins = np.r_[True, values[1:] != values[:-1]][: len(values)]
    first = np.maximum.accumulate(np.where(begins, places, 0))
    found = [np.stack([numbers[first[~begins]], numbers[~begins]], axis=1)]
    for back in range(1, neighbours + 1):
        later = places[places - back > first]  # the first one itself is paired already
        found.append(np.stack([numbers[later - back], numbers[later]], axis=1))
    return np.concatenate(found)


def frequent(column: Column, count: int, more_than: int, memory: int) -> np.ndarray:
    """Sorted uint64: the values that occur more than so often in a column."""
    passes = max(1, -(-count * _SORT_BYTES // memory))
    found = [np.empty(0, np.uint64)]
    for p in range(passes):
        values = [
            piece
            if passes == 1
            else piece[(piece >> np.uint64(32)) * np.uint64(passes) >> np.uint64(32) == np.uint64(p)]
            for piece in column()
        ]
        if values:
            distinct, counts = np.unique(np.concatenate(values), return_counts=True)
            found.append(distinct[counts > more_than])
    return np.concatenate(found)


def drop_near(
    pairs: np.ndarray, similarity: np.ndarray, compare: Callable[[int, int], float], threshold: float, first: np.ndarray
) -> np.ndarray:
    """float64 (documents,): similarity of each dropped document to the one that stays, else 0; decided in their order.

    Args:
        pairs: (pairs, 2) candidates (earlier, later).
        similarity: of each pair.
        first: int64 (documents,), changed: the document that stays in place of each, itself where it stays.
        compare: similarity of two documents, asked where the earlier one of a pair was itself dropped: what counts is the
            document that stays.
    """
    dropped = np.zeros(len(first))
    order = np.lexsort((pairs[:, 0], -similarity, pairs[:, 1]))
    for p in order[similarity[order] >= threshold]:
        earlier, later = pairs[p].tolist()
        if first[later] != later:
            continue
        keeper = int(first[earlier])
        s = float(similarity[p]) if keeper == earlier else compare(keeper, later)
        if s >= threshold:
            first[later] = keeper
            dropped[later] = s
    return dropped


def clusters(pairs: np.ndarray, count: int) -> np.ndarray:
    """int64 (count,): the first document of each one's connected component (union-find with path halving)."""
    parent = np.arange(count, dtype=np.int64)

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return int(i)

    for a, b in pairs.tolist():
        x, y = root(a), root(b)
        if x != y:
            parent[max(x, y)] = min(x, y)
    while not np.array_equal(parent, parent[parent]):
        parent = parent[parent]
    return parent
