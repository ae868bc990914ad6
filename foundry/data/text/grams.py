"""Hashes of n-grams of words, by which duplicates and contamination are found.

Each distinct word (see `words.gram_words`) is hashed once to a 64-bit number. The hash of an n-gram is a polynomial of
the numbers of its words, computed for all positions at once, and finished by the mixer of SplitMix64. Two different
n-grams share a hash with a probability of 2^-64.
"""

from __future__ import annotations

import hashlib

import numpy as np

from foundry.utils.splitmix import GAMMA, mix

MAX_CACHED = 1 << 20  # distinct words that are kept; bounds the memory for an endless stream of texts


class _Numbers(dict):
    """word → 64-bit number, the same in every process (Python's own hash is not)."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MAX_CACHED:
            self.clear()
        number = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
        self[word] = number
        return number


_numbers = _Numbers()


def word_numbers(words: list[str]) -> np.ndarray:
    """uint64 (words,): the number of each word."""
    return np.fromiter(map(_numbers.__getitem__, words), np.uint64, len(words))


def gram_hashes(words: list[str], n: int) -> np.ndarray:
    """The hash of each n-gram, in order.

    Args:
        words: of one document, as `words.gram_words` gives them.
        n: words of an n-gram. A document of fewer words has one hash, of all its words.

    Returns:
        uint64 (max(1, words - n + 1),); empty if there are no words.
    """
    if not words:
        return np.empty(0, np.uint64)
    numbers = word_numbers(words)
    n = min(n, len(numbers))
    count = len(numbers) - n + 1
    out = numbers[:count].copy()
    for k in range(1, n):  # overflow is intended, and NumPy warns of it only for scalars
        out *= GAMMA
        out += numbers[k : k + count]
    return mix(out)
