"""Duplicates: exact ones by hash, near ones by MinHash LSH (Broder 1997) and a check of the exact similarity.

The similarity of two documents is the Jaccard index of their sets of shingles of five words (see `comparable` for the
words). With 112 permutations in 28 bands of 4 rows, a pair of similarity s becomes a candidate with probability
1 - (1 - s^4)^28: 0.51 at 0.4, 0.84 at 0.5, 0.98 at 0.6, 0.9995 at 0.7 (Lee et al. 2022 take 14 bands of 8 rows: 0.56 at
0.7). Within one band, a document is paired with the first document of its key and with the `NEIGHBOURS` before it, so
the formula is valid for keys that up to `NEIGHBOURS` + 2 documents share; in larger groups, pairs far apart are found
only through others. Candidates are then compared exactly, so nothing is dropped that is less similar than the threshold
to a document that is kept. The first document in order is kept.

Everything global is a sort of one 64-bit column at a time, in passes over ranges of its values, so that memory is
bounded by a parameter. What grows with the corpus is 224 + 16 bytes per document on disk and 16 bytes per candidate in
memory. The library rensa computes the signatures.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterator
from itertools import accumulate, pairwise

import numpy as np

from foundry.data.text.grams import Words, hashes_of_numbers, word_numbers
from foundry.data.text.words import casefolded
from foundry.utils.splitmix import GAMMA

BANDS, ROWS = 28, 4
NEIGHBOURS = 6  # earlier documents of the same key that a document is paired with, besides the first
SHINGLE = 5
SEED = 1  # of the permutations: part of the method, not a parameter
_SORT_BYTES = 40  # of memory per value of a pass: the value, its number, its rank, and what the sort itself takes

Column = Callable[[], Iterator[np.ndarray]]  # reads a column of all documents in their order, in pieces


def exact_key(squeezed: str) -> bytes:
    """16 bytes, the same for texts that differ only in case and white space.

    Args:
        squeezed: the text as `words.squeezed` gives it.
    """
    return hashlib.sha256(casefolded(squeezed)).digest()[:16]


def shingles(numbers: np.ndarray) -> np.ndarray:
    """The distinct hashes (sorted uint64) of the shingles of a document, given as the numbers of its words."""
    hashes = np.sort(hashes_of_numbers(numbers, SHINGLE))
    first = np.ones(len(hashes), bool)
    np.not_equal(hashes[1:], hashes[:-1], out=first[1:])
    return hashes[first]  # `np.unique`, which hashes its values first, takes eight times as long


def comparable(text: str, words: Words) -> np.ndarray:
    """The numbers of the words by which a document is compared with others.

    They are its `gram_words` if those make up at least a third of the text. A text that is mostly signs (Morse code,
    tables in ASCII art, emoji) is compared by its runs of characters between white space, or by single characters if it
    has fewer than five runs: the few words of such a text say nothing about the rest.
    """
    if 3 * words.chars >= len(text) - text.count(" "):  # which are at least as many as what is no white space
        return words.numbers
    runs = text.split()
    signs = "".join(runs)
    if 3 * words.chars >= len(signs):
        return words.numbers
    return word_numbers(runs if len(runs) >= SHINGLE else list(signs))


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """The Jaccard index of two sets, given as sorted arrays without repetition; 0 if one is empty."""
    if not len(a) or not len(b):
        return 0.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def band_keys(documents: list[np.ndarray]) -> np.ndarray:
    """Keys by which candidates are found: two documents are a candidate pair if they share the key of a band.

    Args:
        documents: what `comparable` gives for each.

    Returns:
        (documents, BANDS) uint64.
    """
    import rensa

    pieces = _shingle_hashes(documents)
    offsets = np.zeros(len(pieces) + 1, np.uint64)
    np.cumsum([len(p) for p in pieces], out=offsets[1:])
    flat = np.concatenate(pieces) if pieces else np.empty(0, np.uint64)
    rows = rensa.RMinHash.digest_matrix_from_flat_token_hashes(flat, offsets, BANDS * ROWS, SEED).to_rows()
    values = b"".join([array("I", row).tobytes() for row in rows])  # of 32 bits
    bands = np.frombuffer(values, np.uint32).reshape(len(documents), BANDS, ROWS)
    keys = np.zeros(bands.shape[:2], np.uint64)
    for r in range(ROWS):  # four values mixed into one by multiply and shift; overflow is intended
        keys = (keys ^ bands[:, :, r]) * GAMMA
        keys ^= keys >> np.uint64(29)
    return keys


def _shingle_hashes(documents: list[np.ndarray]) -> list[np.ndarray]:
    """`hashes_of_numbers` of many documents, computed over all their words at once."""
    together = hashes_of_numbers(np.concatenate([np.empty(0, np.uint64), *documents]), SHINGLE)
    ends = accumulate(map(len, documents), initial=0)
    return [
        together[start : end - SHINGLE + 1] if end - start >= SHINGLE else hashes_of_numbers(numbers, SHINGLE)
        for numbers, (start, end) in zip(documents, pairwise(ends), strict=True)
    ]


def equal_pairs(column: Column, count: int, memory: int, neighbours: int = 0) -> np.ndarray:
    """Pairs of documents of equal value.

    Each document whose value an earlier one has is paired with the first of them, and with the `neighbours` before it.

    Args:
        column: the values of all documents, uint64.
        count: number of documents.
        memory: bytes that a pass may take; more documents take more passes over the column.
        neighbours: 0 pairs only with the first, which is enough if only groups of equal documents are wanted.

    Returns:
        (pairs, 2) int64: (earlier, later).
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
        later = places[places - back > first]  # the pair with the first one is there already
        found.append(np.stack([numbers[later - back], numbers[later]], axis=1))
    return np.concatenate(found)


def frequent(column: Column, count: int, more_than: int, memory: int) -> np.ndarray:
    """The values that occur more than `more_than` times in a column of `count` values: sorted uint64."""
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
    """Decides which near duplicates are dropped, in the order of the documents.

    Args:
        pairs: (pairs, 2) candidates (earlier, later).
        similarity: of each pair.
        compare: computes the similarity of two documents. It is needed where the earlier document of a pair was itself
            dropped: what counts is the similarity to the document that is kept.
        threshold: the least similarity of near duplicates.
        first: int64 (documents,), changed in place: the document that is kept in place of each, itself if it is kept.

    Returns:
        float64 (documents,): similarity of each dropped document to the one that is kept; 0 for the others.
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
    """The first document of each document's connected component (union-find with path halving): int64 (count,)."""
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
