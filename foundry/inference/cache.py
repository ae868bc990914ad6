"""The engine's key/value cache: one slot per running request, and the blocks of prompts that later requests may share.

A prompt is read in blocks of `BLOCK` tokens that begin at multiples of `BLOCK`. What a block writes into the cache is a
function of the tokens up to its end only, bit for bit, so that a request may copy the blocks of another one with the
same beginning instead of computing them. Only whole blocks are shared.

Shapes by suffix: L layers, N slots, K key/value heads, S positions of a slot, D head dim.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foundry.config import ModelConfig

BLOCK = 32  # tokens: small, so that little of a shared beginning is left over; large enough for efficient products


class SlotCache:
    """Keys and values of the running requests.

    The memory is allocated once. An operating system gives a CPU's pages only when they are written, so that slots that
    are never used cost nothing there.

    Args:
        slots: requests that can run at the same time.

    Attributes:
        kv: (L, 2, N, K, S, D), keys and values.
    """

    def __init__(self, cfg: ModelConfig, slots: int, device: torch.device | str, dtype: torch.dtype) -> None:
        self.slots, self.size = slots, cfg.max_seq_len
        shape = (cfg.n_layers, 2, slots, cfg.n_kv_heads, cfg.max_seq_len, cfg.head_dim)
        self.kv = torch.empty(shape, device=device, dtype=dtype)
        # The rows of one layer as a matrix: (keys and values, slots, heads, positions) by D.
        self._flat = [kv.view(-1, cfg.head_dim) for kv in self.kv]
        heads = torch.arange(cfg.n_kv_heads) * self.size
        values = slots * cfg.n_kv_heads * self.size
        self._heads, self._stride = torch.cat((heads, values + heads)).to(device), cfg.n_kv_heads * self.size

    def rows(self, slot: Tensor, at: Tensor) -> Tensor:
        """Where keys and values of tokens go, for `write`: (T, 2 * K) for slots and positions int64 (T,)."""
        return (slot * self._stride + at)[:, None] + self._heads

    def write(self, layer: int, rows: Tensor, kv: Tensor) -> None:
        """Keys and values of tokens in one layer: (T, 2 * K, D)."""
        self._flat[layer].index_put_((rows,), kv)

    def keys_values(self, layer: int, slot: int, slots: int, low: int, end: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values of some slots at the positions from `low` to before `end`: (n, K, S, D) each."""
        _, half, per_slot, per_head, D, _ = self.kv.stride()
        # `as_strided` is one call where slices would be four; attention is called for every slot and layer.
        size, stride = (slots, self.kv.shape[3], end - low, D), (per_slot, per_head, D, 1)
        place = 2 * layer * half + slot * per_slot + low * D
        return self.kv.as_strided(size, stride, place), self.kv.as_strided(size, stride, place + half)

    def block(self, slot: int, start: int) -> Tensor:
        """A view of the keys and values of the block at a position: (L, 2, K, BLOCK, D)."""
        return self.kv[:, :, slot, :, start : start + BLOCK]


@dataclass(eq=False)
class SharedBlock:
    """A block of a prompt, and the tokens that lead to it.

    Attributes:
        before: the block before it; None for the first one.
        ids: its tokens.
        kv: keys and values (L, 2, K, BLOCK, D).
    """

    before: SharedBlock | None
    ids: tuple[int, ...]
    kv: Tensor


class SharedBlocks:
    """Blocks of prompts by the tokens up to their end; the least recently used ones give way.

    Args:
        tokens: how many tokens are kept at most; 0 turns sharing off.
    """

    def __init__(self, tokens: int) -> None:
        self.capacity = tokens // BLOCK
        # A block is used after those that follow it, so the oldest entry is never needed to reach another one.
        self._blocks: OrderedDict[tuple[SharedBlock | None, tuple[int, ...]], SharedBlock] = OrderedDict()

    def __len__(self) -> int:
        return len(self._blocks)

    def find(self, before: SharedBlock | None, ids: Sequence[int]) -> SharedBlock | None:
        """The block with these tokens after another block; it counts as used now."""
        found = self._blocks.get((before, tuple(ids)))
        if found is not None:
            self._use(found)
        return found

    def put(self, before: SharedBlock | None, ids: Sequence[int], kv: Tensor) -> SharedBlock | None:
        """Keeps a copy of a block; None if there is no room, or the block before it is no longer here.

        Args:
            kv: (L, 2, K, BLOCK, D), a view of a slot.
        """
        if (known := self._blocks.get((before, tuple(ids)))) is not None:
            self._use(known)
            return known
        if not self.capacity or (before is not None and self._blocks.get((before.before, before.ids)) is not before):
            return None
        block = SharedBlock(before, tuple(ids), kv.clone(memory_format=torch.contiguous_format))
        self._blocks[before, block.ids] = block
        self._use(block)
        while len(self._blocks) > self.capacity:
            self._blocks.popitem(last=False)
        return block if self._blocks.get((before, block.ids)) is block else None

    def clear(self) -> None:
        self._blocks.clear()

    def _use(self, block: SharedBlock | None) -> None:
        while block is not None:
            self._blocks.move_to_end((block.before, block.ids))
            block = block.before


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
