"""Encoding at the speed of a look-up, with exactly the ids of SentencePiece.

Natural text repeats its words, so each distinct word is encoded once. A word is what lies between two cuts that cannot change the
result: a BPE merge joins two neighbours into a piece of the vocabulary, so where no piece holds the characters a, b side by side, no
merge ever joins a|b, and what happens on one side never touches the other. The pairs are read from the trained vocabulary; nothing is
assumed about how it was trained. The search for cuts, the grouping of equal words and the gathering of ids are array operations.

This does not hold for every model, and SentencePiece itself encodes the rest: unigram models (their best path is a sum of 32-bit
floats from the start of the text, so rounding, and with it a near tie, depends on what stands before: 12 of 13 texts of 600 kB came
out otherwise), models without byte fallback (neighbouring unknown characters become one token) and models that rewrite their
input. The first texts are encoded both ways.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa

from foundry.config import DataError
from foundry.tokenizers.tokenizer import Tokenizer

SLICE_BYTES = 4 << 20  # text that is worked on at once
MAX_WORDS = 1 << 19  # remembered words; with more of them the memory starts afresh
MAX_WORD_BYTES = 64  # longer ones are not worth remembering
CHECKED_BYTES = 1 << 18  # of the first texts, encoded both ways
_HASH_BITS = 22
_SPACE, _META_SPACE = 0x20, 0x2581


class Encoder:
    """Encodes many texts; the ids are those of `Tokenizer.encode`, always.

    Args:
        tokenizer: the trained tokenizer.

    Attributes:
        by_words: whether distinct words are encoded once; else SentencePiece encodes every text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.by_words = tokenizer.kind == "bpe" and tokenizer.byte_fallback and tokenizer.keeps_text
        self.dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
        self._unchecked = CHECKED_BYTES
        if self.by_words:
            self._ascii_cuts, self._joined = _cut_tables(tokenizer)
            self._forget()

    def encode(self, texts: pa.Array) -> tuple[np.ndarray, np.ndarray]:
        """Ids of texts, without begin and end symbols.

        Args:
            texts: Arrow strings (32 or 64 bit offsets) without nulls.

        Returns:
            All ids (uint16 or uint32) and where each text's begin: int64 (len(texts) + 1,).

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
        return np.concatenate(ids), np.cumsum(np.concatenate(counts))

    def _plain(self, data: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        encoded = self.tokenizer.encode_batch([_text(data[a:b].tobytes()) for a, b in pairwise(starts)])
        return _flat(encoded, self.dtype)

    def _by_words(self, data: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if len(data) <= SLICE_BYTES:
            return self._slice(data, starts)
        ids, at = [], 0  # one large text
        while at < len(data):
            end = self._cut_before(data, at, at + SLICE_BYTES)
            ids.append(self._slice(data[at:end], np.array([0, end - at]))[0])
            at = end
        joined = np.concatenate(ids)
        return joined, np.array([0, len(joined)])

    def _cut_before(self, data: np.ndarray, first: int, end: int) -> int:
        """The last safe cut in the second half of [first, end); the end of the text if there is none."""
        if end >= len(data):
            return len(data)
        half, end = (_begin_of_character(data, at) for at in ((first + end) // 2, end))
        found = np.flatnonzero(_cuts(data[half:end], self._ascii_cuts, self._joined)[1:])
        return half + 1 + int(found[-1]) if len(found) else len(data)

    def _slice(self, data: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        cut = _cuts(data, self._ascii_cuts, self._joined)
        cut[starts[:-1][starts[:-1] < len(data)]] = True
        begins = np.flatnonzero(cut).astype(np.int32)
        edges = pa.py_buffer(np.append(begins, np.int32(len(data))))
        words = pa.Array.from_buffers(pa.binary(), len(begins), [None, edges, pa.py_buffer(data)]).dictionary_encode()
        rows = self._rows(words.dictionary.to_pylist())[words.indices.to_numpy()]
        counts = self._counts[rows]
        ends = np.zeros(len(rows) + 1, np.int64)
        np.cumsum(counts, out=ends[1:])
        ids = self._ids[np.repeat(self._starts[rows] - ends[:-1], counts) + np.arange(ends[-1])]
        return ids, ends[np.searchsorted(begins, starts)]

    def _rows(self, words: list[bytes]) -> np.ndarray:
        """The row of each word in the remembered ids; new words are encoded and remembered."""
        if len(self._starts) > MAX_WORDS or len(self._ids) > 8 * MAX_WORDS:
            self._forget()
        rows = [self._known.get(w, -1) for w in words]
        new = [i for i, row in enumerate(rows) if row < 0]
        if new:
            ids, ends = _flat(self.tokenizer.encode_batch([_text(words[i]) for i in new]), self.dtype)
            first = len(self._starts)
            self._starts = np.append(self._starts, len(self._ids) + ends[:-1])
            self._counts = np.append(self._counts, np.diff(ends))
            self._ids = np.append(self._ids, ids)
            for row, i in enumerate(new, first):
                rows[i] = row
                if len(words[i]) <= MAX_WORD_BYTES:  # a longer one has a row for this call alone
                    self._known[words[i]] = row
        return np.array(rows, np.int64)

    def _forget(self) -> None:
        self._known: dict[bytes, int] = {}
        self._starts, self._counts = np.empty(0, np.int64), np.empty(0, np.int64)
        self._ids = np.empty(0, self.dtype)

    def _check(self, data: np.ndarray, starts: np.ndarray, ids: np.ndarray, ends: np.ndarray) -> None:
        """Compares the first texts with SentencePiece's own ids."""
        n = int(np.searchsorted(starts, self._unchecked, side="right")) - 1  # whole texts, none of them large
        if n <= 0:
            return
        self._unchecked -= int(starts[n])
        expected, at = self._plain(data[: starts[n]], starts[: n + 1])
        if not (np.array_equal(expected, ids[: ends[n]]) and np.array_equal(at, ends[: n + 1])):
            raise DataError(
                f"encoding by words gave other ids than SentencePiece for {self.tokenizer.path}: this is a mistake of this program; "
                "please report it with the tokenizer"
            )


def _slices(offsets: np.ndarray) -> Iterator[tuple[int, int]]:
    """Runs of texts of about `SLICE_BYTES`, at least one text each."""
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


def _flat(encoded: list[list[int]], dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    ends = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(e) for e in encoded], out=ends[1:])
    return np.fromiter((i for e in encoded for i in e), dtype, int(ends[-1])), ends


def _pair_hash(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Place of a pair of code points in the table of joined pairs: a collision only forbids a cut that would have been allowed."""
    with np.errstate(over="ignore"):
        h = a.astype(np.uint32) * np.uint32(0x9E3779B1) ^ b.astype(np.uint32) * np.uint32(0x85EBCA77)
        return (h ^ (h >> np.uint32(15))) >> np.uint32(32 - _HASH_BITS)


def _cut_tables(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """(ASCII pairs between which a cut is safe, as `before << 8 | after`; hashed pairs of all characters that pieces join)."""
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
    return cuts.reshape(-1), joined


def _cuts(data: np.ndarray, ascii_cuts: np.ndarray, joined: np.ndarray) -> np.ndarray:
    """Whether a word may begin at each byte of UTF-8 text; between texts more cuts are needed."""
    cut = np.zeros(len(data), bool)
    if not len(data):
        return cut
    cut[0] = True
    pairs = data[:-1].astype(np.uint16)
    pairs <<= 8
    pairs |= data[1:]
    np.take(ascii_cuts, pairs, out=cut[1:])
    wide = data >= 0x80
    if not wide.any():
        return cut
    near = wide.copy()  # characters beyond ASCII and their neighbours
    near[1:] |= wide[:-1]
    near[:-1] |= wide[1:]
    at = np.flatnonzero(near & ((data & 0xC0) != 0x80))
    points, sizes = _code_points(data, at)
    points[points == _META_SPACE] = _SPACE
    adjacent = at[:-1] + sizes[:-1] == at[1:]
    free = adjacent & ~joined[_pair_hash(points[:-1], points[1:])]
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
