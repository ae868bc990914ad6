"""The loader: the batch of step N is a pure function of (shard index, seed, N).

A batch depends on no state; there are no workers, and a seek is O(1). `packing` decides what a sample is
(`foundry/data/tokens/packing.py`); an epoch reads all its samples in the order of its own bijection, each exactly once.
Rank r of w takes the rows [r*B/w, (r+1)*B/w) of the global batch, so that the global batch is the same for every number
of ranks. Samples of several steps are gathered together from the memory-mapped shards, because one gather of many rows
costs little more than one of a few.

Attention crosses the documents of a row unless it is masked; `batch_documents` returns their boundaries.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from foundry.config import ConfigError, DataError
from foundry.data.tokens.order import permute
from foundry.data.tokens.packing import TokenSpan, make_layout
from foundry.data.tokens.shards import Shards
from foundry.utils.splitmix import key

GATHERED_TOKENS = 1 << 19  # that one gather reads; twice as many are slower where documents are packed


class EpochSamples(NamedTuple):
    """Numbers of samples of an epoch: int64."""

    epoch: int
    samples: np.ndarray


@dataclass(frozen=True)
class RowPart:
    """A document, or a part of it, in a row of a batch.

    Attributes:
        row: of the global batch.
        shard: its file.
        begin, end: the tokens of the document that the row reads; the begin symbol is token 0.
        tokens: those that the row reads.
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
        seq_len: tokens of a sequence; the targets are the next tokens, -100 at padding.
        seed: of the order.
        rank, world_size: which part of the global batch this process reads.
        packing: `cut`, `best_fit` or `document`.

    Attributes:
        rows: the rows of the global batch that this process reads.
        rows_per_epoch: samples of an epoch.
        tokens_per_epoch: places for tokens in an epoch, padding included.
        padding: share of the places that is padding.
        follows_weights: False: a batch is the same whatever the model is.
        widths_vary: False.

    Raises:
        DataError: if the split contains fewer samples than one batch, or packing is unknown.
        ConfigError: for a number out of its range, or a batch_size that is not divisible by world_size.
    """

    follows_weights = False
    widths_vary = False

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
                f"batch_size ({batch_size}) must be a positive multiple of world_size ({world_size}), "
                f"and rank ({rank}) must be in [0, world_size)"
            )
        self.shards = data if isinstance(data, Shards) else Shards(data, split)
        self.batch_size, self.seq_len, self.seed, self.packing = batch_size, seq_len, seed, packing
        self.rows = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._layout = make_layout(packing, self.shards, seq_len, seed)
        self.rows_per_epoch, self.padding = self._layout.samples, self._layout.padding
        self.tokens_per_epoch = self._layout.tokens_per_epoch
        if self.rows_per_epoch < batch_size:
            raise DataError(
                f"the {self.shards.split} split has {self.tokens_per_epoch:,} tokens, fewer than one batch of "
                f"{batch_size} x {seq_len} = {batch_size * seq_len:,}: "
                "lower train.tokens_per_step or model.max_seq_len, or add text"
            )
        self._steps = max(1, min(GATHERED_TOKENS // (len(self.rows) * seq_len), self.rows_per_epoch // batch_size))
        self._block, self._gathered = -1, (np.empty(0), np.empty(0))

    def __len__(self) -> int:
        return sum(entry.tokens for entry in self.shards.entries)

    def samples(self, first: int, steps: int = 1) -> list[EpochSamples]:
        """The samples of this rank's rows of some steps, in their order.

        Raises:
            ConfigError: for a step below 0 or beyond what 64 bits number.
        """
        if first < 0 or (first + steps) * self.batch_size >= 2**63:
            raise ConfigError(f"a step must be from 0 to 2^63 / batch_size, got {first}")
        n = np.arange(first, first + steps, dtype=np.int64)[:, None] * self.batch_size + np.array(self.rows)
        epochs, places = np.divmod(n.reshape(-1), self.rows_per_epoch)
        return [
            EpochSamples(int(e), permute(places[epochs == e], self.rows_per_epoch, key(self.seed, int(e))))
            for e in range(int(epochs[0]), int(epochs[-1]) + 1)
        ]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, targets) of a step, counted from 0.

        Raises:
            ConfigError: for a step below 0 or too large.
        """
        block, i = divmod(step, self._steps)
        if block != self._block:
            parts = [self._layout.read(e, s) for e, s in self.samples(block * self._steps, self._steps)]
            self._gathered = _concatenated(parts)
            self._block = block
        rows = slice(i * len(self.rows), (i + 1) * len(self.rows))
        tokens, targets = self._gathered
        return torch.from_numpy(tokens[rows].astype(np.int64)), torch.from_numpy(targets[rows].astype(np.int64))

    def contents(self, step: int) -> list[list[TokenSpan]]:
        """Where the inputs of each row of `batch(step)` are in the shards, in their order."""
        return [self._layout.spans(e, int(s)) for e, samples in self.samples(step) for s in samples]

    def batch_documents(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the documents of `batch(step)` are, for masks and positions of attention.

        Returns:
            segments: int32 (batch_size / world_size, seq_len), the number of the document in its row, -1 at padding.
            positions: int32, same shape, the place in that document's part of the row, 0 at padding.
        """
        segments, positions = _concatenated([self._layout.boundaries(e, s) for e, s in self.samples(step)])
        return torch.from_numpy(segments), torch.from_numpy(positions)

    def tensors(self, step: int, documents: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(tokens, targets, segments) of a step; segments are None without `documents`: attention crosses documents."""
        return *self.batch(step), self.batch_documents(step)[0] if documents else None

    def parts(self, step: int) -> Iterator[RowPart]:
        """The documents that this rank's rows of `batch(step)` read, in their order."""
        for row, spans in enumerate(self.contents(step), start=self.rows.start):
            for shard, first, count in spans:
                entry = self.shards.entries[shard]
                for doc_id, at, begin, end in self.shards.documents_at(shard, first, count):
                    tokens = self.shards.tokens[shard][at + begin : at + end]
                    yield RowPart(row, entry.file, entry.source, doc_id, begin, end, tokens)

    def describe(self, step: int, most: int = 8) -> str:
        """The shards and documents of `batch(step)` in one line, for an error message."""
        names = [f"{shard} {doc_id}" for shard, doc_id in {(p.shard, p.doc_id): None for p in self.parts(step)}]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return f"it read {', '.join(names[:most])}{more}"

    @property
    def vocab_size(self) -> int:
        return self.shards.index.vocab_size

    @property
    def identity(self) -> dict[str, str]:
        """The hashes that the batches depend on: of the index, which contains that of every shard, and of the
        tokenizer.
        """
        return self.shards.index.identity

    @property
    def bytes_per_token(self) -> float:
        """Bytes of raw text per token of the split, on average."""
        entries = self.shards.entries
        return sum(e.bytes for e in entries) / max(1, sum(e.tokens for e in entries))


def check_numbers(batch_size: int, seq_len: int, seed: int) -> None:
    """Checks the numbers that a loader is made with.

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


def _concatenated(parts: list[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    if len(parts) == 1:
        return parts[0]
    first, second = zip(*parts, strict=True)
    return np.concatenate(first), np.concatenate(second)
