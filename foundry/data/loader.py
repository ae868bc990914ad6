"""The loader: the batch of step N is a pure function of (shard index, seed, N).

No state, no workers, O(1) seek. The train shards, each repeated as the mix says, form one circular stream of tokens. An epoch cuts
the stream into windows of `seq_len`, from an offset of its own, and reads them in the order of its own bijection: every window exactly
once an epoch (a rest shorter than one window is left out, another one each epoch). Rank r of w takes the rows [r*B/w, (r+1)*B/w) of
the global batch, so that the global batch is the same for every number of ranks.

Documents follow one another; a window may hold several, and attention does not stop between them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from foundry.config import DataError
from foundry.data.order import key, permute
from foundry.data.shards import Shards


class DataLoader:
    """Batches of (tokens, targets), int64 (batch_size / world_size, seq_len).

    Args:
        data: `data/shards`, or shards that are already open.
        batch_size: sequences of the global batch.
        seq_len: tokens of a sequence; the targets are the tokens one further.
        seed: of the order.
        rank, world_size: the part of the global batch that this process reads.

    Raises:
        DataError: if the split holds fewer tokens than one batch.
        ValueError: if batch_size is not divisible by world_size.
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
    ) -> None:
        if batch_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ValueError(
                f"batch_size ({batch_size}) must be a positive multiple of world_size ({world_size}), rank {rank} below it"
            )
        self.shards = data if isinstance(data, Shards) else Shards(data, split)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.rows = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self._segments = [
            tokens
            for tokens, info in zip(self.shards.tokens, self.shards.infos, strict=True)
            for _ in range(info["repeat"])
            if len(tokens)
        ]
        self._starts = np.cumsum([0, *(len(s) for s in self._segments)])
        self.tokens_per_epoch = int(self._starts[-1])
        self.windows = self.tokens_per_epoch // seq_len
        if self.windows < batch_size:
            raise DataError(
                f"the {self.shards.split} split holds {self.tokens_per_epoch:,} tokens, fewer than one batch of {batch_size} x {seq_len} = "
                f"{batch_size * seq_len:,}: lower train.tokens_per_step or model.max_seq_len, or add text"
            )

    def positions(self, step: int) -> np.ndarray:
        """Where in the circular stream the rows of a step begin: int64 (batch_size / world_size,)."""
        samples = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)[self.rows]
        epochs, places = np.divmod(samples, self.windows)
        out = np.empty_like(samples)
        for epoch in np.unique(epochs):
            at = epochs == epoch
            k = key(self.seed, int(epoch))
            offset = key(self.seed, int(epoch), 1) % self.tokens_per_epoch
            out[at] = (permute(places[at], self.windows, k) * self.seq_len + offset) % self.tokens_per_epoch
        return out

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """(tokens, targets) of a step, counted from 0."""
        rows = np.stack([self._read(int(p), self.seq_len + 1) for p in self.positions(step)])
        data = torch.from_numpy(rows)
        return data[:, :-1].contiguous(), data[:, 1:].contiguous()

    def _read(self, start: int, n: int) -> np.ndarray:
        """`n` tokens of the circular stream as int64."""
        out = np.empty(n, np.int64)
        filled = 0
        while filled < n:
            i = int(np.searchsorted(self._starts, start, side="right")) - 1
            segment = self._segments[i]
            at = start - int(self._starts[i])
            take = min(n - filled, len(segment) - at)
            out[filled : filled + take] = segment[at : at + take]
            filled += take
            start = (start + take) % self.tokens_per_epoch
        return out
