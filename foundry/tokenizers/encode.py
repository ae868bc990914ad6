"""Encoding at the speed of a look-up, with exactly the ids of SentencePiece.

Natural text repeats its words, so each distinct word is encoded once. A word is the text between two cuts that cannot
change the result: a BPE merge joins two neighbours into a piece of the vocabulary, so where no piece contains the
characters a, b side by side, no merge ever joins a|b, and what happens on one side never affects the other. The pairs
are read from the trained vocabulary; nothing is assumed about how it was trained. The search for cuts, the grouping of
equal words and the gathering of ids are array operations, which run beside each other in several threads.

This is not true of every model, and SentencePiece itself encodes the text of the others: unigram models (their best
path is a sum of 32-bit floats from the start of the text, so rounding, and with it a near tie, depends on the text
before: 12 of 13 texts of 600 kB got other ids), models without byte fallback (neighbouring unknown characters become
one token) and models that rewrite their input. The first texts are encoded both ways and compared.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foundry.config import DataError
from foundry.tokenizers.tokenizer import Tokenizer

SLICE_BYTES = 2 << 20  # text that is encoded at once
MAX_WORDS = 1 << 19  # cached words; when there are more, the cache is emptied
MAX_WORD_BYTES = 64  # longer words are not worth caching
CHECKED_BYTES = 1 << 18  # of the first texts, which are encoded both ways
_HASH_BITS = 22
_SPACE, _META_SPACE = 0x20, 0x2581


class EncodedTexts(NamedTuple):
    """The ids of some texts.

    Attributes:
        ids: of all texts, one after another: uint16 or uint32.
        starts: where each text's ids begin, and the end: int64 (texts + 1,).
    """

    ids: np.ndarray
    starts: np.ndarray


class CutTables(NamedTuple):
    """Where a word may begin.

    Attributes:
        ascii_cuts: whether a cut between two ASCII bytes is safe, by `before << 8 | after`: 65536 times 0 or 1, uint8.
        joined: whether a piece may join two characters, by the hash of the pair: bool (2 ** _HASH_BITS,).
    """

    ascii_cuts: pa.Array
    joined: np.ndarray


class Encoder:
    """Encodes many texts; the ids are always those of `Tokenizer.encode`. Several threads may use one encoder.

    Args:
        tokenizer: the trained tokenizer.

    Attributes:
        by_words: whether each distinct word is encoded once; otherwise SentencePiece encodes every text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.by_words = tokenizer.kind == "bpe" and tokenizer.byte_fallback and tokenizer.keeps_text
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._unchecked = CHECKED_BYTES
        if self.by_words:
            self._tables = _cut_tables(tokenizer)
            self._known: dict[bytes, bytes] = {}  # words and their ids
            self._filling = threading.Lock()

    def encode(self, texts: pa.Array) -> EncodedTexts:
        """Ids of texts, without begin and end symbols.

        Args:
            texts: Arrow strings (32 or 64 bit offsets) without nulls.

        Raises:
            DataError: if a text is null or not UTF-8.
        """
        if texts.null_count:
            raise DataError(f"{texts.null_count} of {len(texts)} texts are null: run the clean stage again")
        texts = texts.cast(pa.large_string()).cast(pa.large_binary())
        offsets = np.frombuffer(texts.buffers()[1], np.int64)[texts.offset : texts.offset + len(texts) + 1]
        data = np.frombuffer(texts.buffers()[2] or b"", np.uint8)
        ids, counts = [np.empty(0, self.dtype)], [np.zeros(1, np.int64)]
        for first, last in _slices(offsets):
            starts = offsets[first : last + 1]
            part = data[starts[0] : starts[-1]]
            if self.by_words:
                some, ends = self._by_words(part, starts - starts[0])
                self._check(part, starts - starts[0], some, ends)
            else:
                some, ends = self._plain(part, starts - starts[0])
            ids.append(some)
            counts.append(np.diff(ends))
        return EncodedTexts(np.concatenate(ids), np.cumsum(np.concatenate(counts)))

    def _plain(self, data: np.ndarray, starts: np.ndarray) -> EncodedTexts:
        """SentencePiece's own ids of the texts that begin at `starts`."""
        encoded = self.tokenizer.encode_batch([_text(data[a:b].tobytes()) for a, b in pairwise(starts)])
        return _flat(encoded, self.dtype)

    def _by_words(self, data: np.ndarray, starts: np.ndarray) -> EncodedTexts:
        if len(data) <= SLICE_BYTES:
            return self._slice(data, starts)
        ids, at = [], 0  # one large text
        while at < len(data):
            end = self._cut_before(data, at, at + SLICE_BYTES)
            ids.append(self._slice(data[at:end], np.array([0, end - at])).ids)
            at = end
        joined = np.concatenate(ids)
        return EncodedTexts(joined, np.array([0, len(joined)]))

    def _cut_before(self, data: np.ndarray, first: int, end: int) -> int:
        """The last safe cut in the second half of [first, end), or the end of the text if there is none."""
        if end >= len(data):
            return len(data)
        half, end = (_begin_of_character(data, at) for at in ((first + end) // 2, end))
        found = np.flatnonzero(_cuts(data[half:end], self._tables)[1:])
        return half + 1 + int(found[-1]) if len(found) else len(data)

    def _slice(self, data: np.ndarray, starts: np.ndarray) -> EncodedTexts:
        cut = _cuts(data, self._tables)
        cut[starts[:-1][starts[:-1] < len(data)]] = True
        begins = np.flatnonzero(cut).astype(np.int32)
        edges = pa.py_buffer(np.append(begins, np.int32(len(data))))
        words = pa.Array.from_buffers(pa.binary(), len(begins), [None, edges, pa.py_buffer(data)]).dictionary_encode()
        encoded = pa.array(self._encoded(words.dictionary.to_pylist()), pa.large_binary())
        _, ends, ids = encoded.take(words.indices).buffers()
        ends = np.frombuffer(ends, np.int64)[: len(begins) + 1] // self.dtype.itemsize
        ids = np.frombuffer(ids or b"", self.dtype)[: ends[-1]]
        return EncodedTexts(ids, ends[np.searchsorted(begins, starts)])

    def _encoded(self, words: list[bytes]) -> list[bytes]:
        """The ids of each of some different words, as bytes; new words are encoded and cached."""
        encoded = list(map(self._known.get, words))
        if None in encoded:
            with self._filling:  # what another thread has encoded meanwhile is not encoded again
                new = [i for i, e in enumerate(encoded) if e is None]
                for i in new:
                    encoded[i] = self._known.get(words[i])
                new = [i for i in new if encoded[i] is None]
                ids, ends = _flat(self.tokenizer.encode_batch([_text(words[i]) for i in new]), self.dtype)
                data, ends = ids.tobytes(), (ends * self.dtype.itemsize).tolist()
                if len(self._known) > MAX_WORDS:
                    self._known.clear()
                for i, (a, b) in zip(new, pairwise(ends), strict=True):
                    encoded[i] = data[a:b]
                    if len(words[i]) <= MAX_WORD_BYTES:
                        self._known[words[i]] = encoded[i]
        return encoded

    def _check(self, data: np.ndarray, starts: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> None:
        """Compares the ids of the first texts with SentencePiece's own."""
        n = int(np.searchsorted(starts, self._unchecked, side="right")) - 1  # only complete texts, none of them large
        if n <= 0:
            return
        self._unchecked -= int(starts[n])
        expected, at = self._plain(data[: starts[n]], starts[: n + 1])
        if not (np.array_equal(expected, ids[: ends[n]]) and np.array_equal(at, ends[: n + 1])):
            raise DataError(
                f"encoding by words gave other ids than SentencePiece for {self.tokenizer.path}: "
                "this is a bug of Foundry; please report it together with the tokenizer"
            )


def _slices(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """(first, last) of runs of texts of about `SLICE_BYTES`; each contains at least one text."""
    first = 0
    while first < len(offsets) - 1:
        last = int(np.searchsorted(offsets, offsets[first] + SLICE_BYTES, side="right")) - 1
        last = min(max(last, first + 1), len(offsets) - 1)
        yield first, last
        first = last


def _begin_of_character(data: np.ndarray, at: int) -> int:
    while at and data[at] & 0xC0 == 0x80:
        at -= 1
    return at


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as e:
        raise DataError(f"a text is not UTF-8 ({e}): {data[:40]!r}; run the clean stage again") from None


def _flat(encoded: list[list[int]], dtype: np.dtype) -> EncodedTexts:
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(e) for e in encoded], out=ends[1:])
    return EncodedTexts(np.fromiter((i for e in encoded for i in e), dtype, int(ends[-1])), ends)


def _pair_hash(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The index of a pair of code points in `CutTables.joined`. A collision only forbids a cut that would be safe."""
    with np.errstate(over="ignore"):
        h = a.astype(np.uint32) * np.uint32(0x9E3779B1) ^ b.astype(np.uint32) * np.uint32(0x85EBCA77)
        return (h ^ (h >> np.uint32(15))) >> np.uint32(32 - _HASH_BITS)


def _cut_tables(tokenizer: Tokenizer) -> CutTables:
    pairs = set()
    for i in range(tokenizer.vocab_size):
        if not tokenizer.is_byte(i):
            points = [_SPACE if ord(c) == _META_SPACE else ord(c) for c in tokenizer.piece(i)]
            pairs.update(pairwise(points))
    cuts = np.zeros((256, 256), bool)
    cuts[:128, :128] = True
    joined = np.zeros(1 << _HASH_BITS, bool)
    if pairs:
        a, b = np.array(sorted(pairs), np.uint32).T
        joined[_pair_hash(a, b)] = True
        both = (a < 128) & (b < 128)
        cuts[a[both], b[both]] = False
    return CutTables(pa.array(cuts.reshape(-1).view(np.uint8)), joined)


def _cuts(data: np.ndarray, tables: CutTables) -> np.ndarray:
    """Whether a word may begin at each byte of UTF-8 text; where texts are joined, the caller adds cuts."""
    cut = np.ones(len(data), bool)
    if not len(data):
        return cut
    pairs = data[:-1].astype(np.uint16)
    pairs <<= 8
    pairs |= data[1:]
    # numpy would take them by 64-bit indices, in three times the time.
    cut[1:] = pc.take(tables.ascii_cuts, pa.array(pairs), boundscheck=False).to_numpy().view(bool)
    beyond = data >= 0x80
    if not beyond.any():
        return cut
    near = beyond.copy()  # characters beyond ASCII and their neighbours
    near[1:] |= beyond[:-1]
    near[:-1] |= beyond[1:]
    at = np.flatnonzero(near)
    at = at[data[at] & 0xC0 != 0x80]
    points, sizes = _code_points(data, at)
    points[points == _META_SPACE] = _SPACE
    adjacent = at[:-1] + sizes[:-1] == at[1:]
    free = adjacent & ~tables.joined[_pair_hash(points[:-1], points[1:])]
    cut[at[1:][free]] = True
    return cut


def _code_points(data: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Code points (uint32) and sizes in bytes of the characters that begin at `at`."""
    padded = np.append(data, np.zeros(3, np.uint8))
    b0, b1, b2, b3 = (padded[at + i].astype(np.uint32) for i in range(4))
    b1, b2, b3 = b1 & 0x3F, b2 & 0x3F, b3 & 0x3F
    two, three, four = b0 >= 0xC0, b0 >= 0xE0, b0 >= 0xF0
    points = np.where(two, (b0 & 0x1F) << 6 | b1, b0)
    points = np.where(three, (b0 & 0x0F) << 12 | b1 << 6 | b2, points)
    points = np.where(four, (b0 & 0x07) << 18 | b1 << 12 | b2 << 6 | b3, points)
    return points, 1 + two.astype(np.int64) + three + four
