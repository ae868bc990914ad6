"""The model as the engine runs it: one forward pass for new tokens of many requests, in slots of one cache.

All products of a step are over the tokens of all requests together. Attention is computed for each by itself, in shapes
that depend on its own positions only: a token of an answer attends to the keys up to its own, a prompt is read in
blocks that begin at multiples of `BLOCK`. A product's row does not depend on the other rows, nor does anything else
here, so in float32 on a CPU the logits of a token are the same bits whatever else is in the step.

This needs care with the functions of PyTorch: a kernel over a whole tensor treats its last elements, and those at the
borders between threads, by other instructions. What is rounded correctly (sums, products, roots) does not mind; `silu`
does, and gets each row by itself, see `_silu`.

Shapes by suffix: N tokens of a step, C dim, H query heads, K key/value heads, D head dim, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.inference.cache import BLOCK, SlotCache
from foundry.inference.decoder import Decoder
from foundry.inference.piece import Piece
from foundry.inference.products import Product, pack
from foundry.models import MiniLLM
from foundry.models.loss import soft_cap
from foundry.models.transformer import Block

FEW, STEP = 32, 16  # see `_rows`
SERIAL = 32768  # elements below which PyTorch computes an elementwise function on one thread


@dataclass(slots=True)
class _Stretch:
    """Tokens of a step whose attention is one call: T of one slot, or one each of several neighbouring slots.

    They see the keys from position `low` to before `end`, apart from the mask among themselves.
    """

    row: int
    T: int
    slot: int
    slots: int
    low: int
    end: int


class Layer:
    """The weights of one block, those that are multiplied together as one matrix."""

    def __init__(self, block: Block, pack: Callable[[Tensor], Product]) -> None:
        attention, ffn = block.attention, block.ffn
        self.attention_norm, self.ffn_norm = block.attention_norm.weight, block.ffn_norm.weight
        self.qkv = pack(torch.cat(attention.input_weights()))
        self.out = pack(attention.wo.weight)
        self.gate_up = pack(torch.cat(ffn.input_weights()))
        self.down = pack(ffn.w_down.weight)
        self.head_norm: Tensor | None = None
        if attention.q_norm is not None:
            q, k = attention.q_norm.weight, attention.k_norm.weight
            self.head_norm = torch.cat((q.expand(attention.n_heads, -1), k.expand(attention.n_kv_heads, -1)))


class Runner:
    """Runs a model for the engine.

    Args:
        model: on its device and in the type of its weights; it is put into evaluation mode.
        slots: requests that can run at the same time.
        pack: prepares a matrix (O, C) for products with (N, C); the result does not follow later changes of the model.
        fixed_shapes: whether steps without prompts go through a `Decoder`; None: on CUDA, where it replays a graph.

    Attributes:
        cache: keys and values of the slots.
    """

    @torch.inference_mode()
    def __init__(
        self,
        model: MiniLLM,
        slots: int,
        pack: Callable[[Tensor], Product] = pack,
        fixed_shapes: bool | None = None,
    ) -> None:
        self.model, self.cfg = model.eval(), model.cfg
        weight = model.tok_embeddings.weight
        self.device, self.dtype = weight.device, weight.dtype
        self.fixed_shapes = self.device.type == "cuda" if fixed_shapes is None else fixed_shapes
        self.cache = SlotCache(self.cfg, slots, self.device, self.dtype)
        self._pack = pack
        cos, sin = torch.view_as_real(model.freqs_cis).unbind(-1)
        self._cos, self._sin = torch.cat((cos, cos), -1)[:, None], torch.cat((-sin, sin), -1)[:, None]
        self._mask = self._diagonal()
        self.refresh()

    @torch.inference_mode()
    def refresh(self) -> None:
        """Takes the model's weights as they are now."""
        self._layers = [Layer(block, self._pack) for block in self.model.layers]
        self._head = self._pack(self.model.head_weight)
        self._seen = _state(self.model)
        self._decoders: dict[int, Decoder] = {}

    def stale(self) -> bool:
        """Whether the model's weights were changed after they were taken, in place or by others in their place.

        A change through `.data` in place is not seen.
        """
        return self._seen != _state(self.model)

    def begin(self, slot: int) -> None:
        """A slot gets another request."""
        if self.fixed_shapes:
            # Fixed shapes multiply what is masked by zero, which does not remove a NaN that damaged weights left.
            self.cache.kv[:, :, slot].zero_()

    @torch.inference_mode()
    def forward(self, pieces: Sequence[Piece]) -> Tensor:
        """Reads the pieces into the cache; returns the logits of the wanted tokens (R, V) in the order of the pieces.

        Several pieces of one slot must follow each other.
        """
        if self.fixed_shapes and all(len(p.ids) == 1 and not p.prompt for p in pieces):
            return self._decoder(1 + max(p.slot for p in pieces)).step(pieces)
        ids, positions, slots, wanted = [], [], [], []
        for p in pieces:
            n = len(p.ids)
            wanted.extend(range(len(ids) + n - p.wanted, len(ids) + n))
            ids.extend(p.ids)
            positions.extend(range(p.start, p.start + n))
            slots.extend([p.slot] * n)
        count = len(ids)
        for values in (ids, positions, slots):
            values.extend(values[-1:] * (_rows(count) - count))  # the last token several times
        tokens, at, slot = torch.tensor((ids, positions, slots), device=self.device)
        stretches = self._stretches(pieces)
        x = self.hidden(tokens, at, slot, lambda q, i: self._attend(q, i, stretches))
        if len(wanted) < len(x):
            x = x[torch.tensor(wanted, dtype=torch.int64, device=self.device)]
        return self.logits(x) if wanted else x.new_empty(0, self.cfg.vocab_size)

    def hidden(self, tokens: Tensor, at: Tensor, slot: Tensor, attend: Callable[[Tensor, int], Tensor]) -> Tensor:
        """The residual stream (N, C) after all layers; keys and values go into the cache.

        Args:
            tokens: int64 (N,).
            at, slot: int64 (N,), the place of each in the cache.
            attend: queries (N, H, D) and the number of a layer to the attention's output (N, H * D).
        """
        cfg = self.cfg
        H, K = cfg.n_heads, cfg.n_kv_heads
        cos, sin = self._cos[at], self._sin[at]
        rows = self.cache.rows(slot, at)
        x = F.embedding(tokens, self.model.tok_embeddings.weight)
        for i, layer in enumerate(self._layers):
            qkv = layer.qkv(self._norm(x, layer.attention_norm)).view(len(x), H + 2 * K, -1)
            qk = qkv[:, : H + K].float()
            if layer.head_norm is not None:
                qk = torch.rms_norm(qk, qk.shape[-1:], None, cfg.norm_eps).mul_(layer.head_norm)
            a, b = qk.chunk(2, dim=-1)
            qkv[:, : H + K] = (qk * cos).add_(torch.cat((b, a), -1).mul_(sin))
            self.cache.write(i, rows, qkv[:, H:])
            x = x + layer.out(attend(qkv[:, :H], i))
            gate, up = layer.gate_up(self._norm(x, layer.ffn_norm)).chunk(2, dim=-1)
            x = x + layer.down(_silu(gate) * up)
        return x

    def logits(self, x: Tensor) -> Tensor:
        """(N, C) to (N, V)."""
        return soft_cap(self._head(self._norm(x, self.model.norm.weight)), self.cfg.logit_softcap)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return torch.rms_norm(x, weight.shape, weight, self.cfg.norm_eps)

    def _stretches(self, pieces: Sequence[Piece]) -> list[_Stretch]:
        """The calls of attention for a step.

        Tokens of answers in neighbouring slots that have as many keys share a call; it computes each by itself.
        """
        window, found, row = self.cfg.sliding_window, [], 0
        for p in pieces:
            at, end = p.start, p.start + len(p.ids)
            while at < end:
                T = min(BLOCK - at % BLOCK, end - at) if p.prompt else 1
                low = max(0, at + 1 - window) if window else 0
                last = found[-1] if found else None
                if (
                    last
                    and T == last.T == 1
                    and last.slot + last.slots == p.slot
                    and (last.low, last.end) == (low, at + 1)
                ):
                    last.slots += 1
                else:
                    found.append(_Stretch(row, T, p.slot, 1, low, at + T))
                at, row = at + T, row + T
        return found

    def _attend(self, q_NHD: Tensor, i: int, stretches: Sequence[_Stretch]) -> Tensor:
        """The attention's output (N, H * D). The queries of a group of heads are rows of one product with its keys."""
        N, H, D = q_NHD.shape
        K = self.cfg.n_kv_heads
        G, context = H // K, self.cfg.max_seq_len
        q_NKGD, parts = q_NHD.view(N, K, G, D), []
        for s in stretches:
            k, v = self.cache.keys_values(i, s.slot, s.slots, s.low, s.end)
            if s.T == 1:
                y = F.scaled_dot_product_attention(q_NKGD[s.row : s.row + s.slots], k, v)
                parts.append(y.view(s.slots, H * D) if G == 1 else y.reshape(s.slots, H * D))
            else:
                q = q_NKGD[s.row : s.row + s.T].transpose(0, 1).reshape(1, K, s.T * G, D)
                mask = self._mask[: s.T * G, context + s.T - (s.end - s.low) : context + s.T]
                if mask.is_cuda:
                    mask = mask.contiguous()  # whose kernels want an aligned one
                y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
                parts.append(y.view(K, s.T, G, D).transpose(0, 1).reshape(s.T, H * D))
        row = stretches[-1].row + max(stretches[-1].T, stretches[-1].slots)
        if row < N:
            parts.append(parts[-1][-1:].expand(N - row, -1))
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _diagonal(self) -> Tensor:
        """What is added to the scores of a block's queries, for every number of keys before the block.

        Row t * G + g is that of the block's token t, column max_seq_len + s that of the key s positions after the
        block's first one.
        """
        cfg = self.cfg
        t = torch.arange(BLOCK)[:, None]
        s = torch.arange(-cfg.max_seq_len, BLOCK)[None]
        seen = (s <= t) & (s > t - cfg.sliding_window) if cfg.sliding_window else s <= t
        mask = torch.zeros(seen.shape).masked_fill(~seen, -math.inf).to(self.device, self.dtype)
        return mask.repeat_interleave(cfg.n_heads // cfg.n_kv_heads, dim=0)

    def _decoder(self, slots: int) -> Decoder:
        """The decoder for the first slots: of a power of two, so that few graphs serve all numbers of answers."""
        rows = min(1 << (slots - 1).bit_length(), self.cache.slots)
        if rows not in self._decoders:
            self._decoders[rows] = Decoder(self, rows)
        return self._decoders[rows]


def _rows(tokens: int) -> int:
    """How many rows are computed for so many tokens.

    A product of one row is computed as one of two, see `foundry.inference.products`. For every number of rows oneDNN
    compiles its kernels once, which takes some milliseconds; so large numbers are rounded up.
    """
    return max(2, tokens) if tokens <= FEW else -(-tokens // STEP) * STEP


def _silu(x: Tensor) -> Tensor:
    """silu of (N, F), in place, where x is a part of wider rows: PyTorch then computes each row by itself.

    At most `SERIAL` elements at a time, because threads would divide them in the middle of rows.
    """
    rows = max(1, SERIAL // x.shape[1])
    for part in x.split(rows) if len(x) > rows else (x,):
        F.silu(part, inplace=True)
    return x


def _state(model: MiniLLM) -> list[tuple[int, int]]:
    return [(p.data_ptr(), 0 if p.is_inference() else p._version) for p in model.parameters()]
