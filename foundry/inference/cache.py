"""The key/value cache: one static buffer per layer, filled from the left.

The buffers are allocated once and never grow: for a token, generation allocates only its activations.
Shapes by suffix: B batch, K key/value heads, T new tokens, S cached tokens, D head dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from foundry.config import ModelConfig


class LayerKV:
    """Keys and values of one layer, (B, K, max_seq_len, D)."""

    def __init__(self, cfg: ModelConfig, batch: int, device: torch.device | str, dtype: torch.dtype) -> None:
        shape = (batch, cfg.n_kv_heads, cfg.max_seq_len, cfg.head_dim)
        self.k = torch.zeros(shape, device=device, dtype=dtype)
        self.v = torch.zeros(shape, device=device, dtype=dtype)
        self.length = 0

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends (B, K, T, D) keys and values; returns views (B, K, S, D) of all that are cached.

        Raises:
            ValueError: if the cache is too small for them.
        """
        end = self.length + k.shape[2]
        if end > self.k.shape[2]:
            raise ValueError(f"{end} tokens do not fit the cache of {self.k.shape[2]} (model.max_seq_len)")
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class KVCache:
    """One `LayerKV` per layer; the `cache` argument of `MiniLLM.forward`."""

    def __init__(
        self, cfg: ModelConfig, batch: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
    ) -> None:
        self.layers = [LayerKV(cfg, batch, device, dtype) for _ in range(cfg.n_layers)]

    @property
    def length(self) -> int:
        """Tokens in the cache."""
        return self.layers[0].length

    def clear(self) -> None:
        """Removes every token; the buffers are kept."""
        for layer in self.layers:
            layer.length = 0
