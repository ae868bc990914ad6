"""How documents become rows of a batch: `cut`, `best_fit`, `document`.

cut: the documents of an epoch are one circular stream, read in windows of `seq_len` tokens. No place is wasted; most
    documents are cut, and most windows contain several.
best_fit: complete documents are packed into rows by best-fit decreasing (Ding et al. 2024, "Fewer truncations improve
    language modeling"); only a document longer than a row is cut. Places left over are padding.
document: a row contains one document, or a part of one that is longer than a row.

A row has `seq_len` places, each an input token and its target, the next token. With `best_fit` and `document` a
document of n tokens fills n - 1 places: every token but the begin symbol is a target exactly once, every token but the
end symbol an input exactly once, cut or not, and nothing is ever predicted across documents. The target of padding is
IGNORE.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from foundry.config import DataError
from foundry.data.tokens.index import source_totals
from foundry.data.tokens.mixture import Mixture
from foundry.data.tokens.order import permute
from foundry.data.tokens.shards import Shards
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID
from foundry.utils.splitmix import key
from foundry.utils.targets import IGNORE


class TokenSpan(NamedTuple):
    """Neighbouring tokens of a shard: its number, the first token, how many."""

    shard: int
    first: int
    count: int


class StreamSlices(NamedTuple):
    """The slices of shards that the stream of an epoch consists of.

    Attributes:
        starts: where each begins in the stream, and the end: int64, one more.
        shards: the shard of each.
        firsts: its first token in the shard.
    """

    starts: np.ndarray
    shards: np.ndarray
    firsts: np.ndarray


class Cut:
    """Windows of the stream; sample s of an epoch begins at token `s * seq_len + offset(epoch)`.

    Attributes:
        samples: windows of an epoch. A rest shorter than one window is left out; it is another one in each epoch.
        tokens_per_epoch: tokens of the stream.
        padding: 0.
    """

    def __init__(self, shards: Shards, seq_len: int, seed: int) -> None:
        self.seq_len, self._seed = seq_len, seed
        self._tokens = shards.tokens
        totals = source_totals(shards.entries)
        self._mixture = Mixture([t.tokens for t in totals.values()], [t.weight for t in totals.values()])
        names = [entry.source for entry in shards.entries]
        # The shards of each source, and where each begins in the source.
        self._shards = [[i for i, name in enumerate(names) if name == source] for source in totals]
        self._edges = [np.cumsum([0, *(len(self._tokens[i]) for i in shards)]) for shards in self._shards]
        self._windows = [
            np.lib.stride_tricks.sliding_window_view(t, seq_len + 1) if len(t) > seq_len else None for t in self._tokens
        ]
        self._epochs: dict[int, StreamSlices] = {}
        self.tokens_per_epoch = self._mixture.size
        self.samples = self.tokens_per_epoch // seq_len
        self.padding = 0.0

    def starts(self, epoch: int, samples: np.ndarray) -> np.ndarray:
        """Where windows begin in the stream of an epoch."""
        return (samples * self.seq_len + key(self._seed, epoch, 1) % self.tokens_per_epoch) % self.tokens_per_epoch

    def read(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of samples of an epoch: unsigned integers (len(samples), seq_len)."""
        rows = self._rows(epoch, samples)[0]
        return rows[:, :-1], rows[:, 1:]

    def boundaries(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(segments, positions) as `DataLoader.batch_documents` returns them."""
        rows, joins = self._rows(epoch, samples)
        begins = (rows == BOS_ID) | joins
        begins[:, 0] = True
        return _segments(begins[:, :-1])

    def spans(self, epoch: int, sample: int) -> list[TokenSpan]:
        """Where the inputs of a sample are read from, in their order."""
        starts, shards, firsts = self._slices(epoch)
        at, left = int(self.starts(epoch, np.array([sample]))[0]), self.seq_len
        out = []
        while left:
            i = int(np.searchsorted(starts, at, side="right")) - 1
            n = min(left, int(starts[i + 1]) - at)
            out.append(TokenSpan(int(shards[i]), at - int(starts[i]) + int(firsts[i]), n))
            at, left = (at + n) % self.tokens_per_epoch, left - n
        return out

    def _rows(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of each window and the one after it, and whether a slice of the stream begins at each."""
        starts, shards, firsts = self._slices(epoch)
        n = self.seq_len + 1
        begins = self.starts(epoch, samples)
        out = np.empty((len(begins), n), self._tokens[0].dtype)
        joins = np.zeros(out.shape, bool)
        slices = np.searchsorted(starts, begins, side="right") - 1
        inside = begins + n <= starts[slices + 1]  # the windows that one slice contains
        local = begins - starts[slices] + firsts[slices]
        for i in np.unique(shards[slices[inside]]):
            here = inside & (shards[slices] == i)
            out[here] = self._windows[i][local[here]]
        if not inside.all():
            across = np.flatnonzero(~inside)
            at = (begins[across, None] + np.arange(n)) % self.tokens_per_epoch
            slices = np.searchsorted(starts, at, side="right") - 1
            values = np.empty(at.shape, out.dtype)
            for i in np.unique(shards[slices]):
                here = shards[slices] == i
                values[here] = self._tokens[i][(at - starts[slices] + firsts[slices])[here]]
            out[across], joins[across] = values, at == starts[slices]
        return out, joins

    def _slices(self, epoch: int) -> StreamSlices:
        """The mixture's slices of sources, cut where a shard ends."""
        if epoch not in self._epochs:
            if len(self._epochs) > 3:
                self._epochs.clear()
            lengths, shards, firsts = [0], [], []
            mixed = self._mixture.slices(epoch)
            for source, a, length in zip(
                mixed.sources.tolist(), mixed.firsts.tolist(), np.diff(mixed.starts).tolist(), strict=True
            ):
                edges, b = self._edges[source], a + length
                for shard, low, high in zip(self._shards[source], edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                    if max(a, low) < min(b, high):
                        lengths.append(min(b, high) - max(a, low))
                        shards.append(shard)
                        firsts.append(max(a, low) - low)
            starts = np.cumsum(lengths, dtype=np.int64)
            self._epochs[epoch] = StreamSlices(starts, np.array(shards), np.array(firsts))
        return self._epochs[epoch]


class SourceSpans(NamedTuple):
    """The spans of a source, each of which fits a row.

    Attributes:
        weight: how often an epoch reads the source.
        shard: the shard of each: int64.
        first: its first token there; one after each of its `count` input tokens is that token's target.
        count: its places.
    """

    weight: float
    shard: np.ndarray
    first: np.ndarray
    count: np.ndarray


class Packed:
    """Rows of complete spans, planned once from their lengths.

    A row contains spans of one source, and the weight of a source counts rows.

    Args:
        tokens: of each shard.
        sources: what is packed.
        best_fit: several spans per row; else one.
        learnt: for each token of each shard, whether it is a target; default: all are.

    Attributes:
        samples: rows of an epoch.
        tokens_per_epoch: places of an epoch, padding included.
        padding: share of the places that is padding, before weights.
    """

    def __init__(
        self,
        tokens: list[np.ndarray],
        sources: list[SourceSpans],
        seq_len: int,
        seed: int,
        *,
        best_fit: bool,
        learnt: list[np.ndarray] | None = None,
    ) -> None:
        self.seq_len = seq_len
        self._tokens, self._learnt = tokens, learnt
        plans, rows_of = [], []
        for number, (_, shard, at, n) in enumerate(sources):
            row = pack_best_fit(n, seq_len) if best_fit else np.arange(len(n))
            rows = int(row.max(initial=-1)) + 1
            # Packing put rows of like lengths together; shuffled, a slice of the rows represents the source.
            plans.append((sum(rows_of) + permute(row, max(1, rows), key(seed, number, 2)), shard, at, n))
            rows_of.append(rows)
        row, shard, at, n = (
            (np.concatenate(column) for column in zip(*plans, strict=True)) if plans else [np.empty(0, int)] * 4
        )
        order = np.argsort(row, kind="stable")
        self._shard, self._at, self._n = shard[order], at[order], n[order]
        self._edges = np.searchsorted(row[order], np.arange(sum(rows_of) + 1))  # the spans of each row
        ends = np.cumsum(self._n)
        before = np.concatenate([[0], ends])[self._edges[:-1]]
        self._column = ends - self._n - np.repeat(before, np.diff(self._edges))
        self._first_row = np.cumsum([0, *rows_of])
        self._mixture = Mixture(rows_of, [source.weight for source in sources])
        self.samples = self._mixture.size
        self.tokens_per_epoch = self.samples * seq_len
        self.padding = 1.0 - int(self._n.sum()) / max(1, sum(rows_of) * seq_len)

    def read(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of samples of an epoch: int32 (len(samples), seq_len)."""
        spans, begins = self._spans(epoch, samples)
        order = np.argsort(self._shard[spans], kind="stable")
        spans, begins = spans[order], begins[order]
        inputs = np.full(len(samples) * self.seq_len, EOS_ID, np.int32)
        targets = np.full(len(samples) * self.seq_len, IGNORE, np.int32)
        shards, firsts = np.unique(self._shard[spans], return_index=True)
        for shard, low, high in zip(shards, firsts, [*firsts[1:], len(spans)], strict=True):
            tokens, n = self._tokens[shard], self._n[spans[low:high]]
            before = np.cumsum(n) - n
            flat = np.arange(before[-1] + n[-1])
            places = flat + np.repeat(begins[low:high] - before, n)
            flat += np.repeat(self._at[spans[low:high]] - before, n)
            inputs[places] = tokens[flat]
            flat += 1
            targets[places] = tokens[flat]
            if self._learnt is not None:
                targets[places[~self._learnt[shard][flat]]] = IGNORE
        return inputs.reshape(-1, self.seq_len), targets.reshape(-1, self.seq_len)

    def boundaries(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(segments, positions) as `DataLoader.batch_documents` returns them."""
        spans, places = self._spans(epoch, samples)
        begins = np.zeros((len(samples), self.seq_len), bool)
        begins.reshape(-1)[places] = True
        filled = np.zeros(len(samples), np.int64)
        np.add.at(filled, places // self.seq_len, self._n[spans])
        padding = np.arange(self.seq_len) >= filled[:, None]
        segments, positions = _segments(begins)
        segments[padding], positions[padding] = -1, 0
        return segments, positions

    def spans(self, epoch: int, sample: int) -> list[TokenSpan]:
        """Where the inputs of a sample are read from, in their order."""
        found = self._spans(epoch, np.array([sample]))[0]
        return [TokenSpan(int(self._shard[i]), int(self._at[i]), int(self._n[i])) for i in found]

    def _spans(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of the spans in the samples' rows, and where each begins in the flat batch."""
        starts, sources, firsts = self._mixture.slices(epoch)
        i = np.searchsorted(starts, samples, side="right") - 1
        row = self._first_row[sources[i]] + firsts[i] + samples - starts[i]
        counts = self._edges[row + 1] - self._edges[row]
        spans = np.repeat(self._edges[row], counts) + _counting(counts)
        return spans, np.repeat(np.arange(len(samples)) * self.seq_len, counts) + self._column[spans]


def make_layout(packing: str, shards: Shards, seq_len: int, seed: int) -> Cut | Packed:
    """The layout that `train.packing` names.

    Raises:
        DataError: for a name that is none of the three.
    """
    if packing == "cut":
        return Cut(shards, seq_len, seed)
    if packing in ("best_fit", "document"):
        return Packed(shards.tokens, _sources(shards, seq_len), seq_len, seed, best_fit=packing == "best_fit")
    raise DataError(f"packing must be cut, best_fit or document, got {packing!r}")


def _sources(shards: Shards, seq_len: int) -> list[SourceSpans]:
    """The documents of each source; one that is longer than a row is cut into spans of its length."""
    found = []
    for source, total in source_totals(shards.entries).items():
        spans = [
            (np.full(len(at), i), at, n)
            for i, entry in enumerate(shards.entries)
            if entry.source == source
            for at, n in [cut_documents(shards.offsets[i], seq_len)]
        ]
        shard, at, n = (np.concatenate(column) for column in zip(*spans, strict=True))
        found.append(SourceSpans(total.weight, shard, at, n))
    return found


def cut_documents(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Cuts documents into spans of at most `seq_len` places.

    Args:
        offsets: where each document begins in the shard's tokens, and the end.

    Returns:
        The first token of each span in the shard, and its places: int64, in the order of the documents.
    """
    offsets = offsets.astype(np.int64)
    places = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-places // seq_len)
    nth = _counting(counts)
    return np.repeat(offsets[:-1], counts) + nth * seq_len, np.minimum(
        seq_len, np.repeat(places, counts) - nth * seq_len
    )


def pack_best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """Packs spans into rows by best-fit decreasing.

    Each goes, the longest first, into the row with the least room that is enough for it, or into a new row if there is
    none. Equal lengths are placed together and rows of equal room form one list, so that a step moves many rows at
    once: the work grows with the number of spans and of different lengths, not with their product.

    Args:
        lengths: places of each span, 1 to capacity.
        capacity: places of a row.

    Returns:
        The row of each span: int64.
    """
    order = np.argsort(-lengths, kind="stable")
    rows = np.empty(len(lengths), np.int64)
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the number of places left
    open_rooms = 0  # bit r: room[r] is not empty
    n_rows = done = 0
    sizes, counts = np.unique(lengths, return_counts=True)
    for size, count in zip(sizes[::-1].tolist(), counts[::-1].tolist(), strict=True):
        while count:
            bits = open_rooms >> size
            left = size + (bits & -bits).bit_length() - 1 if bits else capacity
            each = left // size  # the same row stays the best fit until it is full
            needed = -(-count // each)
            if bits:
                chosen = room[left][-needed:]
                del room[left][-needed:]
                if not room[left]:
                    open_rooms ^= 1 << left
            else:
                chosen = list(range(n_rows, n_rows + needed))
                n_rows += needed
            taken = min(count, each * len(chosen))
            rows[order[done : done + taken]] = np.repeat(chosen, each)[:taken]
            done += taken
            count -= taken
            short = each * len(chosen) - taken  # the last row may have fewer
            full = chosen if not short else chosen[:-1]
            for some, rest in ((full, left - each * size), (chosen[len(full) :], left - (each - short) * size)):
                if some and rest:
                    room[rest] += some
                    open_rooms |= 1 << rest
    return rows


def _counting(counts: np.ndarray) -> np.ndarray:
    """Counts from 0 for each count: [2, 3] → [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _segments(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of the segment in its row, place in it): int32, for segments that begin where `begins` is true."""
    columns = np.arange(begins.shape[1])
    latest = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    return (np.cumsum(begins, axis=1) - 1).astype(np.int32), (columns - latest).astype(np.int32)
