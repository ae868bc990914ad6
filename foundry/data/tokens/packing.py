"""How documents become rows of a batch: `cut`, `best_fit`, `document`.

cut: the documents of an epoch are one circular stream, read in windows of `seq_len` tokens. No place is wasted; most documents
    are cut, and windows hold several.
best_fit: whole documents are packed into rows by best-fit decreasing (Ding et al. 2024, "Fewer truncations improve language modeling");
    only a document longer than a row is cut. Places left over are padding.
document: one document, or one row-long piece of it, a row.

A row has `seq_len` places, each an input token and its target, the token one further. In the two packed ways a document of n
tokens fills n - 1 places: every token but the begin symbol is a target exactly once, every token but the end symbol an input
exactly once, cut or not, and nothing is ever predicted across documents. The target of padding is IGNORE.
"""

from __future__ import annotations

import numpy as np

from foundry.config import DataError
from foundry.data.tokens.index import source_totals
from foundry.data.tokens.mixture import Mixture
from foundry.data.tokens.order import permute
from foundry.data.tokens.shards import Shards
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID
from foundry.utils.splitmix import key
from foundry.utils.targets import IGNORE


class Cut:
    """Windows of the stream; sample s of an epoch begins at token `s * seq_len + offset(epoch)`.

    Attributes:
        samples: windows of an epoch (a rest shorter than one window is left out, another one each epoch).
        tokens_per_epoch: tokens of the stream.
    """

    def __init__(self, shards: Shards, seq_len: int, seed: int) -> None:
        self.seq_len, self._seed = seq_len, seed
        self._tokens = shards.tokens
        totals = source_totals(shards.entries)
        self._mixture = Mixture([n for n, _ in totals.values()], [w for _, w in totals.values()])
        names = [entry.source for entry in shards.entries]
        # The shards of each source, and where each begins in the source.
        self._parts = [[i for i, name in enumerate(names) if name == source] for source in totals]
        self._edges = [np.cumsum([0, *(len(self._tokens[i]) for i in parts)]) for parts in self._parts]
        self._windows = [
            np.lib.stride_tricks.sliding_window_view(t, seq_len + 1) if len(t) > seq_len else None for t in self._tokens
        ]
        self._epochs: dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]] = {}
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
        """(segments, positions) as `DataLoader.batch_documents` has them."""
        rows, joins = self._rows(epoch, samples)
        begins = (rows == BOS_ID) | joins
        begins[:, 0] = True
        return _segments(begins[:, :-1])

    def pieces(self, epoch: int, sample: int) -> list[tuple[int, int, int]]:
        """(shard, its first token, tokens) of the runs that a sample's inputs are read from, in their order."""
        first, shard, offset = self._runs(epoch)
        at, left = int(self.starts(epoch, np.array([sample]))[0]), self.seq_len
        out = []
        while left:
            run = int(np.searchsorted(first, at, side="right")) - 1
            n = min(left, int(first[run + 1]) - at)
            out.append((int(shard[run]), at - int(first[run]) + int(offset[run]), n))
            at, left = (at + n) % self.tokens_per_epoch, left - n
        return out

    def _rows(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of each window and the one after it; where the stream goes on in another place of a shard."""
        first, shard, offset = self._runs(epoch)
        n = self.seq_len + 1
        starts = self.starts(epoch, samples)
        out = np.empty((len(starts), n), self._tokens[0].dtype)
        joins = np.zeros(out.shape, bool)
        run = np.searchsorted(first, starts, side="right") - 1
        inside = starts + n <= first[run + 1]
        local = starts - first[run] + offset[run]
        for i in np.unique(shard[run[inside]]):
            here = inside & (shard[run] == i)
            out[here] = self._windows[i][local[here]]
        if not inside.all():
            apart = np.flatnonzero(~inside)
            at = (starts[apart, None] + np.arange(n)) % self.tokens_per_epoch
            run = np.searchsorted(first, at, side="right") - 1
            values = np.empty(at.shape, out.dtype)
            for i in np.unique(shard[run]):
                here = shard[run] == i
                values[here] = self._tokens[i][(at - first[run] + offset[run])[here]]
            out[apart], joins[apart] = values, at == first[run]
        return out, joins

    def _runs(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs of neighbouring tokens: where each begins in the stream (and the end), its shard, its first token there."""
        if epoch not in self._epochs:
            if len(self._epochs) > 3:
                self._epochs.clear()
            lengths, shards, offsets = [0], [], []
            starts, sources, firsts = self._mixture.runs(epoch)
            for source, a, length in zip(sources.tolist(), firsts.tolist(), np.diff(starts).tolist(), strict=True):
                edges, b = self._edges[source], a + length
                for part, low, high in zip(self._parts[source], edges[:-1].tolist(), edges[1:].tolist(), strict=True):
                    if max(a, low) < min(b, high):
                        lengths.append(min(b, high) - max(a, low))
                        shards.append(part)
                        offsets.append(max(a, low) - low)
            self._epochs[epoch] = (np.cumsum(lengths, dtype=np.int64), np.array(shards), np.array(offsets))
        return self._epochs[epoch]


class Packed:
    """Rows of whole documents, planned once from their lengths; a row holds documents of one source, and weights count rows.

    Attributes:
        samples: rows of an epoch.
        tokens_per_epoch: places of an epoch, padding included.
        padding: share of the places that is padding, before weights.
    """

    def __init__(self, shards: Shards, seq_len: int, seed: int, *, best_fit: bool) -> None:
        self.seq_len = seq_len
        self._tokens = shards.tokens
        totals = source_totals(shards.entries)
        plans, rows_of = [], []
        for number, source in enumerate(totals):
            pieces = [
                (np.full(len(at), i), at, n)
                for i, entry in enumerate(shards.entries)
                if entry.source == source
                for at, n in [cut_documents(shards.offsets[i], seq_len)]
            ]
            shard, at, n = (np.concatenate(column) for column in zip(*pieces, strict=True))
            row = pack_best_fit(n, seq_len) if best_fit else np.arange(len(n))
            rows = int(row.max(initial=-1)) + 1
            # A slice of the rows is a fair sample of the source: packing put like lengths together.
            plans.append((sum(rows_of) + permute(row, max(1, rows), key(seed, number, 2)), shard, at, n))
            rows_of.append(rows)
        row, shard, at, n = (
            (np.concatenate(column) for column in zip(*plans, strict=True)) if plans else [np.empty(0, int)] * 4
        )
        order = np.argsort(row, kind="stable")
        self._shard, self._at, self._n = shard[order], at[order], n[order]
        self._edges = np.searchsorted(row[order], np.arange(sum(rows_of) + 1))  # the pieces of each row
        ends = np.cumsum(self._n)
        before = np.concatenate([[0], ends])[self._edges[:-1]]
        self._column = ends - self._n - np.repeat(before, np.diff(self._edges))
        self._first_row = np.cumsum([0, *rows_of])
        self._mixture = Mixture(rows_of, [w for _, w in totals.values()])
        self.samples = self._mixture.size
        self.tokens_per_epoch = self.samples * seq_len
        self.padding = 1.0 - int(self._n.sum()) / max(1, sum(rows_of) * seq_len)

    def read(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(inputs, targets) of samples of an epoch: int32 (len(samples), seq_len)."""
        pieces, begins = self._pieces(epoch, samples)
        order = np.argsort(self._shard[pieces], kind="stable")
        pieces, begins = pieces[order], begins[order]
        inputs = np.full(len(samples) * self.seq_len, EOS_ID, np.int32)
        targets = np.full(len(samples) * self.seq_len, IGNORE, np.int32)
        shards, firsts = np.unique(self._shard[pieces], return_index=True)
        for shard, low, high in zip(shards, firsts, [*firsts[1:], len(pieces)], strict=True):
            tokens, n = self._tokens[shard], self._n[pieces[low:high]]
            before = np.cumsum(n) - n
            flat = np.arange(before[-1] + n[-1])
            places = flat + np.repeat(begins[low:high] - before, n)
            flat += np.repeat(self._at[pieces[low:high]] - before, n)
            inputs[places] = tokens[flat]
            flat += 1
            targets[places] = tokens[flat]
        return inputs.reshape(-1, self.seq_len), targets.reshape(-1, self.seq_len)

    def boundaries(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(segments, positions) as `DataLoader.batch_documents` has them."""
        pieces, places = self._pieces(epoch, samples)
        begins = np.zeros((len(samples), self.seq_len), bool)
        begins.reshape(-1)[places] = True
        filled = np.zeros(len(samples), np.int64)
        np.add.at(filled, places // self.seq_len, self._n[pieces])
        padding = np.arange(self.seq_len) >= filled[:, None]
        segments, positions = _segments(begins)
        segments[padding], positions[padding] = -1, 0
        return segments, positions

    def pieces(self, epoch: int, sample: int) -> list[tuple[int, int, int]]:
        """(shard, its first token, tokens) of the documents that a sample's inputs are read from, in their order."""
        found = self._pieces(epoch, np.array([sample]))[0]
        return [(int(self._shard[p]), int(self._at[p]), int(self._n[p])) for p in found]

    def _pieces(self, epoch: int, samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The pieces of the samples' rows, and where each begins in the flat batch."""
        starts, sources, firsts = self._mixture.runs(epoch)
        run = np.searchsorted(starts, samples, side="right") - 1
        row = self._first_row[sources[run]] + firsts[run] + samples - starts[run]
        counts = self._edges[row + 1] - self._edges[row]
        pieces = np.repeat(self._edges[row], counts) + _counting(counts)
        return pieces, np.repeat(np.arange(len(samples)) * self.seq_len, counts) + self._column[pieces]


def make_layout(packing: str, shards: Shards, seq_len: int, seed: int) -> Cut | Packed:
    """The layout that `train.packing` names.

    Raises:
        DataError: for a name that is none of the three.
    """
    if packing == "cut":
        return Cut(shards, seq_len, seed)
    if packing in ("best_fit", "document"):
        return Packed(shards, seq_len, seed, best_fit=packing == "best_fit")
    raise DataError(f"packing must be cut, best_fit or document, got {packing!r}")


def cut_documents(offsets: np.ndarray, seq_len: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of at most `seq_len` places: (first token in the shard, places), both int64, in the order of the documents."""
    offsets = offsets.astype(np.int64)
    places = np.maximum(np.diff(offsets) - 1, 0)
    counts = -(-places // seq_len)
    nth = _counting(counts)
    return np.repeat(offsets[:-1], counts) + nth * seq_len, np.minimum(
        seq_len, np.repeat(places, counts) - nth * seq_len
    )


def pack_best_fit(lengths: np.ndarray, capacity: int) -> np.ndarray:
    """The row of each piece by best-fit decreasing: each goes where the least room is left that holds it, else into a new row.

    Equal lengths are placed together and rows of equal room form one list, so that a step moves many rows at once: the work grows
    with the number of pieces and of different lengths, not with their product.

    Args:
        lengths: places of each piece, 1 to capacity.
    """
    order = np.argsort(-lengths, kind="stable")
    rows = np.empty(len(lengths), np.int64)
    room: list[list[int]] = [[] for _ in range(capacity + 1)]  # rows by the places that they have left
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
            short = each * len(chosen) - taken  # the last row may have got fewer
            full = chosen if not short else chosen[:-1]
            for some, rest in ((full, left - each * size), (chosen[len(full) :], left - (each - short) * size)):
                if some and rest:
                    room[rest] += some
                    open_rooms |= 1 << rest
    return rows


def _counting(counts: np.ndarray) -> np.ndarray:
    """0, 1, … for each count: [2, 3] → [0, 1, 0, 1, 2]."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) - np.repeat(ends - counts, counts)


def _segments(begins: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(number of the segment, place in it), int32, where segments begin at the marks."""
    columns = np.arange(begins.shape[1])
    latest = np.maximum.accumulate(np.where(begins, columns, 0), axis=1)
    return (np.cumsum(begins, axis=1) - 1).astype(np.int32), (columns - latest).astype(np.int32)
