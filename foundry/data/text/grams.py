"""Hashes of n-grams of words, by which duplicates and contamination are found.

Each distinct word (see `words.gram_words`) is hashed once to a 64-bit number. The hash of an n-gram is a polynomial of
the numbers of its words, computed for all positions at once, and finished by the mixer of SplitMix64. Two different
n-grams share a hash with a probability of 2^-64.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, pairwise
from typing import NamedTuple

import numpy as np

from foundry.data.text.runs import RunTable
from foundry.data.text.words import characters, spaced_words
from foundry.utils.splitmix import GAMMA, mix

AT_ONCE = 256  # texts; one of 500 bytes alone takes four times as long


class Words(NamedTuple):
    """The `gram_words` of a document.

    Attributes:
        spaced: with spaces between them, in UTF-8; `chars`: their characters.
        numbers: the `word_numbers`.
    """

    spaced: bytes
    chars: int
    numbers: np.ndarray

    def names(self) -> list[str]:
        return self.spaced.decode("utf-8", "surrogatepass").split()


class _WordTable(RunTable):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = array("Q")

    def add(self, run: bytes) -> None:
        """Gives a word 64 bits that are the same in every process (Python's own hash is not)."""
        self.numbers.append(int.from_bytes(hashlib.blake2b(run, digest_size=8).digest(), "little"))


_table = _WordTable()


def _read(documents: list[bytes]) -> tuple[np.ndarray, list[int]]:
    """(the numbers of the words of documents that have spaces between them, where each document begins, and the
    end)"""
    global _table
    if _table.full:
        _table = _WordTable()
    runs = _table.read(documents)
    return np.frombuffer(_table.numbers, np.uint64)[runs.numbers], runs.ends.tolist()


def word_numbers(words: list[str]) -> np.ndarray:
    """uint64 (words,): the number of each word; a word contains no space."""
    return _read([" ".join(words).encode("utf-8", "surrogatepass")])[0]


def read_words(texts: Sequence[str]) -> list[Words]:
    """The words of each text."""
    spaced = [spaced_words(text) for text in texts]
    numbers, ends = _read(spaced)
    return [
        Words(s, characters(s) - s.count(b" "), numbers[start:end])
        for s, (start, end) in zip(spaced, pairwise(ends), strict=True)
    ]


def stream_words(texts: Iterable[str]) -> Iterator[Words]:
    """`read_words` of a stream of texts, which reads some of them at once."""
    texts = iter(texts)
    while some := list(islice(texts, AT_ONCE)):
        yield from read_words(some)


def gram_hashes(words: list[str], n: int) -> np.ndarray:
    """The hash of each n-gram, in order.

    Args:
        words: of one document, as `words.gram_words` gives them.
        n: words of an n-gram. A document of fewer words has one hash, of all its words.

    Returns:
        uint64 (max(1, words - n + 1),); empty if there are no words.
    """
    return hashes_of_numbers(word_numbers(words), n)


def hashes_of_numbers(numbers: np.ndarray, n: int) -> np.ndarray:
    """`gram_hashes` of the document whose words have these numbers."""
    return mix(_polynomials(numbers, min(n, len(numbers)))) if len(numbers) else np.empty(0, np.uint64)


def _polynomials(numbers: np.ndarray, n: int) -> np.ndarray:
    """The polynomial of each n-gram, not mixed yet: uint64 (words - n + 1,)."""
    count = len(numbers) - n + 1
    out = numbers[:count].copy()
    for k in range(1, n):  # overflow is intended, and NumPy warns of it only for scalars
        out *= GAMMA
        out += numbers[k : k + count]
    return out


def may_repeat(documents: list[np.ndarray], n: int, times: int) -> set[int]:
    """Which of up to 2^16 documents may have an n-gram `times` times: all that do, and hardly any other.

    One sort serves all documents: the number of the document is in the upper 16 bits, its hash in the others.

    Args:
        documents: the `word_numbers` of each.
        times: at least 2.
    """
    numbers = np.concatenate([np.empty(0, np.uint64), *documents])
    if len(numbers) < n + times - 1:
        return set()
    places = np.repeat(np.arange(len(documents), dtype=np.uint64), [len(d) for d in documents])[: len(numbers) - n + 1]
    keys = np.sort(_polynomials(numbers, n) >> np.uint64(16) | places << np.uint64(48))
    again = keys[times - 1 :] == keys[: len(keys) - times + 1]
    return set((keys[times - 1 :][again] >> np.uint64(48)).tolist())
