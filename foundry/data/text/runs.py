"""The numbers of runs of characters between spaces, found without a Python object for each run.

A run is known by a hash of its bytes, a polynomial modulo 2^64. Prefix sums give the hashes of all runs of a block of
text at once, and a table of slots gives their numbers; only a run that is new becomes an object. Two different runs
share a hash with a probability of about 2^-60.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np

BLOCK = 1 << 16  # bytes: what is computed for each of them stays in the processor's cache
MAX_RUNS = 1 << 19  # distinct ones that a table keeps; bounds the memory for an endless stream of texts
_SLOT_BITS = 20
_SPREAD = np.uint64(0xBF58476D1CE4E5B9)  # of SplitMix64: without it, similar runs share slots
_BASE = 0x9E3779B97F4A7C13  # odd, and 3 modulo 4: its low powers are as far from 1 as they can be


def _powers(base: int) -> np.ndarray:
    out = np.full(BLOCK + 1, base, np.uint64)
    out[0] = 1
    return np.multiply.accumulate(out)  # overflow is intended


_UP, _DOWN = _powers(_BASE), _powers(pow(_BASE, -1, 2**64))


class Runs(NamedTuple):
    """The numbers of the runs of some documents, one document after the other.

    Attributes:
        numbers: int64.
        ends: where each document begins in them, and the end: int64 (documents + 1,).
    """

    numbers: np.ndarray
    ends: np.ndarray


class RunTable:
    """Gives every distinct run a number, from 0; `add` is called for each new one in their order."""

    def __init__(self) -> None:
        self._hashes = np.zeros(1 << _SLOT_BITS, np.uint64)
        self._in_slot = np.zeros(1 << _SLOT_BITS, np.int32)
        self._known: dict[int, int] = {}
        self._terms, self._sums = np.zeros((2, BLOCK + 1), np.uint64)

    @property
    def full(self) -> bool:
        return len(self._known) > MAX_RUNS

    def add(self, run: bytes) -> None:
        raise NotImplementedError

    def read(self, documents: list[bytes]) -> Runs:
        """The numbers of the runs of documents in UTF-8, whose only white space is the space."""
        data = b" ".join([b"", *documents, b""])
        begins, numbers = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        for start, block in _blocks(data):
            places, of_block = self._read_block(block)
            begins.append(places + start)
            numbers.append(of_block)
        lengths = np.fromiter(map(len, documents), np.int64, len(documents))
        ends = np.zeros(len(documents) + 1, np.int64)
        np.cumsum(lengths + 1, out=ends[1:])
        return Runs(np.concatenate(numbers), np.searchsorted(np.concatenate(begins), ends))

    def _read_block(self, block: bytes) -> tuple[np.ndarray, np.ndarray]:
        """(where the runs of a block begin, their numbers). The block begins and ends with a space."""
        data = np.frombuffer(block, np.uint8)
        spaces = np.flatnonzero(data == 32)
        wide = np.flatnonzero(np.diff(spaces) > 1)
        starts, stops = spaces[wide] + 1, spaces[wide + 1]
        if len(block) > BLOCK:  # one long run
            digest = hashlib.blake2b(block[starts[0] : stops[0]], digest_size=8).digest()
            hashes = np.array([int.from_bytes(digest, "little")], np.uint64)
        else:
            powers, terms, sums = _UP[: len(data)], self._terms[: len(data)], self._sums[: len(data) + 1]
            np.multiply(data, powers, out=terms)
            terms += powers  # so that a zero byte counts, too
            np.cumsum(terms, out=sums[1:])
            hashes = (sums[stops] - sums[starts]) * _DOWN[starts]
        slots = (hashes * _SPREAD >> np.uint64(64 - _SLOT_BITS)).astype(np.int64)
        numbers = self._in_slot[slots].astype(np.int64)
        missing = np.flatnonzero(self._hashes[slots] != hashes)
        if len(missing):
            _, first, places = np.unique(hashes[missing], return_index=True, return_inverse=True)
            first = missing[first]
            spans = zip(starts[first].tolist(), stops[first].tolist(), strict=True)
            found = self._numbers(hashes[first].tolist(), (block[start:stop] for start, stop in spans))
            numbers[missing] = found[places]
            _, once = np.unique(slots[first], return_index=True)
            free = once[self._hashes[slots[first[once]]] == 0]
            self._hashes[slots[first[free]]], self._in_slot[slots[first[free]]] = hashes[first[free]], found[free]
        return starts, numbers

    def _numbers(self, hashes: list[int], runs: Iterable[bytes]) -> np.ndarray:
        """The numbers of runs that are not in their slots."""
        known, found = self._known, []
        for value, run in zip(hashes, runs, strict=True):
            number = known.get(value)
            if number is None:
                number = known[value] = len(known)
                self.add(run)
            found.append(number)
        return np.array(found, np.int64)


def _blocks(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(where it begins, block): of at most `BLOCK` bytes, or with a single run. It begins and ends with a space, which
    is shared with its neighbours."""
    at = 0
    while at + 1 < len(data):
        end = len(data) - 1
        if end - at >= BLOCK:
            end = data.rfind(b" ", at + 1, at + BLOCK)
            if end < 0:
                end = data.index(b" ", at + 1)
        yield at, data[at : end + 1]
        at = end
