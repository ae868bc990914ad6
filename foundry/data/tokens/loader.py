"""The loader: the batch of step N is a pure function of (shard index, seed, N).

No state that a batch depends on, no workers, O(1) seek. `packing` says what a sample is (`foundry/data/tokens/packing.py`); an epoch reads
all its samples in the order of its own bijection, each exactly once. Rank r of w takes the rows [r*B/w, (r+1)*B/w) of the global
batch, so that the global batch is the same for every number of ranks. Samples of several steps are gathered together from the
memory-mapped shards, because one gather of many rows costs little more than one of a few.

Attention does not stop between the documents of a row; `batch_documents` tells where they lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from foundry.config import ConfigError, DataError
from foundry.data.tokens.order import permute
from foundry.data.tokens.packing import make_layout
from foundry.data.tokens.shards import Shards
from foundry.utils.splitmix import key

GATHERED = 1 << 18  # tokens that are gathered at once


@dataclass(frozen=True)
class Part:
    """A part of a document in a row of a batch.

    Attributes:
        begin, end: tokens of the document that the row reads, begin symbol counted.
        tokens: of the part.
    """

    row: int
    shard: str
    source: str
    doc_id: str
    begin: int
    end: int
    tokens: np.ndarray


class DataLoader:
    """Batches of (tokens, targets), int64 (batch_size / world_size, seq_len). Its length is the tokens of the split.

    Args:
        data: `data/shards`, or shards that are already open.
        batch_size: sequences of the global batch.
        seq_len: tokens of a sequence; the targets are the tokens one further, -100 at padding.
        seed: of the order.
        rank, world_size: the part of the global batch that this process reads.
        packing: `cut`, `best_fit` or `document`.

    Attributes:
        tokens_per_epoch: places for tokens in an epoch, padding included.
        windows: samples (rows) of an epoch.
        padding: share of the places that is padding.

    Raises:
        DataError: if the split holds fewer samples than one batch, or packing is unknown.
        ConfigError: for a number out of its range, or a batch_size that is not divisible by world_size.
    """

    def __init__(
        self,
        data: str | Path | Shards,
        batch_size: int,
        seq_len: int,
        seed: int = 1,
        *,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        packing: str = "cut",
    ) -> None:
        check_numbers(batch_size, seq_len, seed)
        if world_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size ({batch_size}) must be a positive multiple of world_size ({world_size}), rank {rank} below it"
            )
        self.shards = data if isinstance(data, Shards) else Shards(data, split)
        self.batch_size, self.seq_len, self.seed, self.packing = batch_size, seq_len, seed, packing
        self.rows = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._layout = make_layout(packing, self.shards, seq_len, seed)
        self.windows, self.padding = self._layout.samples, self._layout.padding
        self.tokens_per_epoch = self._layout.tokens_per_epoch
        if self.windows < batch_size:
            raise DataError(
                f"the {self.shards.split} split holds {self.tokens_per_epoch:,} tokens, fewer than one batch of {batch_size} x {seq_len} = "
                f"{batch_size * seq_len:,}: lower train.tokens_per_step or model.max_seq_len, or add text"
            )
        self._steps = max(1, min(GATHERED // (len(self.rows) * seq_len), self.windows // batch_size))
        self._block, self._gathered = -1, (np.empty(0), np.empty(0))

    def __len__(self) -> int:
        return sum(entry.tokens for entry in self.shards.entries)

    def samples(self, first: int, steps: int = 1) -> list[tuple[int, np.ndarray]]:
        """(epoch, its sample numbers) of this rank's rows of some steps, in their order.

        Raises:
            ConfigError: for a step below 0 or beyond what 64 bits number.
        """
        if first < 0 or (first + steps) * self.batch_size >= 2**63:
            raise ConfigError(f"a step must be from 0 to 2^63 / batch_size, got {first}")
        n = np.arange(first, first + steps, dtype=np.int64)[:, None] * self.batch_size + np.array(self.rows)
        epochs, places = np.divmod(n.reshape(-1), self.windows)
        return [
            (int(e), permute(places[epochs == e], self.windows, key(self.seed, int(e))))
            for e in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, targets) of a step, counted from 0.

        Raises:
            ConfigError: for a step below 0.
        """
        block, i = divmod(step, self._steps)
        if block != self._block:
            parts = [self._layout.read(e, s) for e, s in self.samples(block * self._steps, self._steps)]
            self._gathered = _joined(parts)
            self._block = block
        rows = slice(i * len(self.rows), (i + 1) * len(self.rows))
        tokens, targets = self._gathered
        return torch.from_numpy(tokens[rows].astype(np.int64)), torch.from_numpy(targets[rows].astype(np.int64))

    def contents(self, step: int) -> list[list[tuple[int, int, int]]]:
        """Where the inputs of each row of `batch(step)` lie: (shard, its first token, tokens), in their order."""
        return [self._layout.pieces(e, int(s)) for e, samples in self.samples(step) for s in samples]

    def batch_documents(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the documents of `batch(step)` lie, for masks and positions of attention.

        Returns:
            segments: int32 (batch_size / world_size, seq_len), number of the document within its row, -1 at padding.
            positions: int32, same shape, place within that document's part of the row, 0 at padding.
        """
        segments, positions = _joined([self._layout.boundaries(e, s) for e, s in self.samples(step)])
        return torch.from_numpy(segments), torch.from_numpy(positions)

    def tensors(self, step: int, documents: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(tokens, targets, segments) of a step; without `documents` no segments: attention crosses the documents of a row."""
        return *self.batch(step), self.batch_documents(step)[0] if documents else None

    def parts(self, step: int) -> Iterator[Part]:
        """The documents that this rank's rows of `batch(step)` read, in their order."""
        for row, pieces in enumerate(self.contents(step), start=self.rows.start):
            for shard, first, count in pieces:
                entry = self.shards.entries[shard]
                for doc_id, at, begin, end in self.shards.documents_at(shard, first, count):
                    tokens = self.shards.tokens[shard][at + begin : at + end]
                    yield Part(row, entry.file, entry.source, doc_id, begin, end, tokens)

    def describe(self, step: int, most: int = 8) -> str:
        """One line for an error message: shards and documents of `batch(step)`."""
        names = [f"{shard} {doc_id}" for shard, doc_id in {(p.shard, p.doc_id): None for p in self.parts(step)}]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return f"it read {', '.join(names[:most])}{more} (`foundry inspect --step` prints them)"

    @property
    def vocab_size(self) -> int:
        return self.shards.index.vocab_size

    @property
    def identity(self) -> dict[str, str]:
        """The hashes that the batches depend on: of the index, which has that of every shard, and of the tokenizer."""
        return self.shards.index.identity

    @property
    def bytes_per_token(self) -> float:
        """Of the raw text of the split, on average."""
        entries = self.shards.entries
        return sum(e.bytes for e in entries) / max(1, sum(e.tokens for e in entries))


def check_numbers(batch_size: int, seq_len: int, seed: int) -> None:
    """
    Raises:
        ConfigError: naming the first argument that is out of its range.
    """
    for name, value, least, end in (
        ("batch_size", batch_size, 1, 2**31),
        ("seq_len (block_size)", seq_len, 1, 2**31),
        ("seed", seed, 0, 2**63),
    ):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value < end:
            raise ConfigError(f"{name} must be an integer from {least} to {end - 1:,}, got {value!r}")


def _joined(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    first, second = zip(*parts, strict=True)
    return np.concatenate(first), np.concatenate(second)
