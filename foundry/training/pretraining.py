"""Pre-training's loss and validator: the next token, and bits per byte of held-out documents."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from foundry.data.tokens.documents import batches, spread_documents, windows
from foundry.data.tokens.shards import Shards
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents


class NextToken:
    """Cross-entropy of the next token, with an optional z-loss.

    Args:
        chunk: positions whose logits exist at a time.
        z_loss: weight of the squared logarithm of the softmax's denominator (Chowdhery et al. 2022, arXiv:2204.02311);
            0: none.
    """

    def __init__(self, chunk: int, z_loss: float) -> None:
        self.chunk, self.z_loss = chunk, z_loss

    @property
    def identity(self) -> dict[str, Any]:
        """Nothing: the recipe has the weight, and the chunk is execution."""
        return {}

    def count(self, tokens: Tensor, targets: Tensor, segments: Tensor | None = None) -> Tensor:
        return (targets >= 0).sum()

    def __call__(
        self, model: MiniLLM, tokens: Tensor, targets: Tensor, segments: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        return model.summed_loss(tokens, targets, segments, chunk=self.chunk, z_loss=self.z_loss)


class HeldOutText:
    """Validation on fixed documents: the sum of nats over the sum of tokens, and over the sum of bytes.

    Args:
        shards: of the validation split.
        max_tokens: how many tokens of it are read.
        seq_len: the model's context.
        chunk: positions whose logits exist at a time.
    """

    def __init__(self, shards: Shards, max_tokens: int, seq_len: int, chunk: int) -> None:
        chosen = spread_documents(shards, max_tokens)
        self.documents, self.n_bytes = [d.tokens for d in chosen], [d.n_bytes for d in chosen]
        self.seq_len, self.chunk = seq_len, chunk

    @property
    def identity(self) -> dict[str, Any]:
        """Nothing: the recipe says how many tokens, the loader has the hash of the shards' index."""
        return {}

    def __call__(
        self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> dict[str, float]:
        """val_loss (nats per token) and val_bits_per_byte."""

        def nats(model: MiniLLM, tokens: Tensor, targets: Tensor) -> Tensor:
            return model.nats(tokens, targets, chunk=self.chunk)

        items = batches(windows(self.documents, self.seq_len, self.seq_len), rows)
        sums, counts = score_documents(model, items, len(self.documents), precision, lambda x, y: apply(nats, x, y))
        return {
            "val_loss": sums.sum() / counts.sum(),
            "val_bits_per_byte": sums.sum() / math.log(2) / sum(self.n_bytes),
        }
