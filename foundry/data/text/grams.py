"""Hashes of n-grams of a document's units: what duplicates and contamination are found by.

A unit (a word, or a character of a script without spaces) becomes a 64-bit number once for each distinct unit; the hash of
an n-gram is a polynomial of its units' numbers, computed for all places at once, and finished by SplitMix64's mixer. Two
different n-grams share a hash with a probability of 2^-64.
"""

from __future__ import annotations

import hashlib

import numpy as np

from foundry.utils.splitmix import GAMMA, mix

MAX_CACHED = 1 << 20  # distinct units held; bounds the memory on texts without end


class _Numbers(dict):
    """unit → 64-bit number, the same in every process (Python's own hash is not)."""

    def __missing__(self, unit: str) -> int:
        if len(self) >= MAX_CACHED:
            self.clear()
        number = int.from_bytes(hashlib.blake2b(unit.encode(), digest_size=8).digest(), "little")
        self[unit] = number
        return number


_numbers = _Numbers()


def word_numbers(words: list[str]) -> np.ndarray:
    """uint64: one number for each distinct word."""
    return np.fromiter(map(_numbers.__getitem__, words), np.uint64, len(words))


def gram_hashes(words: list[str], n: int) -> np.ndarray:
    """uint64 hash of each run of `n` units, in order; of all units together where there are fewer than `n`, none of none."""
    if not words:
        return np.empty(0, np.uint64)
    numbers = word_numbers(words)
    n = min(n, len(numbers))
    count = len(numbers) - n + 1
    out = numbers[:count].copy()
    for k in range(1, n):  # overflow is wanted, and only scalars warn of it
        out *= GAMMA
        out += numbers[k : k + count]
    return mix(out)
