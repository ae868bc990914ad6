"""MiniLLM: a decoder like Llama.

It has RMSNorm before each layer, rotary positions, grouped-query attention, SwiGLU and tied embeddings.

Shapes by suffix: B batch, T time, C dim, V vocabulary. All initial weights are set in `init_weights`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from foundry.config import ModelConfig
from foundry.models.components import (
    MLP,
    FlashAttention,
    LayerCache,
    RMSNorm,
    document_blocks,
    precompute_freqs_cis,
    visible,
)
from foundry.models.loss import linear_cross_entropy, soft_cap, sum_dtype, token_nats
from foundry.utils.device import settle_vector_math
from foundry.utils.targets import IGNORE

if TYPE_CHECKING:
    from foundry.models.adapter import Adapter
    from foundry.models.components import AttentionMask


class Cache(Protocol):
    """What the model needs of a key/value cache: the number of tokens in it, and one part per layer."""

    @property
    def length(self) -> int: ...

    @property
    def layers(self) -> Sequence[LayerCache]: ...


class Block(nn.Module):
    """Attention and feed-forward layer, each normalised before and added to the residual stream."""

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.attention = FlashAttention(cfg)
        self.ffn_norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.ffn = MLP(cfg)
        self.dropout = nn.Dropout(cfg.dropout)

    def forward(
        self, x: Tensor, freqs_cis: Tensor, cache: LayerCache | None = None, mask: AttentionMask | None = None
    ) -> Tensor:
        """(B, T, C) → (B, T, C)."""
        x = x + self.dropout(self.attention(self.attention_norm(x), freqs_cis, cache, mask))
        return x + self.dropout(self.ffn(self.ffn_norm(x)))


class MiniLLM(nn.Module):
    """The language model.

    Args:
        cfg: its architecture. Impossible shapes were refused when the config was made.
    """

    freqs_cis: Tensor

    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        settle_vector_math()
        self.cfg = cfg
        self.tok_embeddings = nn.Embedding(cfg.vocab_size, cfg.dim)
        self.layers = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layers))
        self.norm = RMSNorm(cfg.dim, cfg.norm_eps)
        self.output = None if cfg.tie_embeddings else nn.Linear(cfg.dim, cfg.vocab_size, bias=False)
        self.adapter: Adapter | None = None  # set by `foundry.models.adapter.adapt`
        self.recompute = False  # activations in the backward pass: less memory, a third more arithmetic
        self.block_masks = False  # documents are masked by FlexAttention, which has to be compiled
        # A plain attribute, not a buffer: `.to(torch.bfloat16)` would drop the imaginary part.
        self.freqs_cis = precompute_freqs_cis(cfg.head_dim, cfg.max_seq_len, cfg.rope_theta)
        self.init_weights()

    def _apply(self, fn: Callable, recurse: bool = True) -> MiniLLM:
        super()._apply(fn, recurse)
        self.freqs_cis = self.freqs_cis.to(self.tok_embeddings.weight.device)
        return self

    @torch.no_grad()
    def init_weights(self) -> None:
        """Embedding N(0, 0.02); inputs of a layer N(0, 1/sqrt(fan_in)); outputs to the residual stream 0; norms 1.

        With zero outputs every block starts as the identity, so the first loss is that of a uniform guess over the
        vocabulary, about ln V, up to the small noise of the embedding. Without `zero_init` the outputs are
        N(0, 0.02 / sqrt(2 n_layers)), as in GPT-2.
        """
        out_std = 0.0 if self.cfg.zero_init else 0.02 / math.sqrt(2 * self.cfg.n_layers)
        nn.init.normal_(self.tok_embeddings.weight, std=0.02)
        if self.output is not None:
            nn.init.normal_(self.output.weight, std=0.02)
        for block in self.layers:
            for linear in (
                block.attention.wq,
                block.attention.wk,
                block.attention.wv,
                block.ffn.w_gate,
                block.ffn.w_up,
            ):
                nn.init.normal_(linear.weight, std=1 / math.sqrt(linear.in_features))
            for linear in (block.attention.wo, block.ffn.w_down):
                nn.init.normal_(linear.weight, std=out_std) if out_std else nn.init.zeros_(linear.weight)

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the output head: (V, C)."""
        return self.tok_embeddings.weight if self.output is None else self.output.weight

    def forward(
        self,
        tokens: Tensor,
        targets: Tensor | None = None,
        cache: Cache | None = None,
        reduction: str = "mean",
        segments: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Next-token logits, and their loss when there are targets.

        Args:
            tokens: int64 (B, T), T at most `max_seq_len`, positions already in the cache included.
            targets: int64 (B, T); -100 is not counted.
            cache: keys and values of the tokens before; it grows by T.
            reduction: of the loss over valid targets: `mean`, `sum`, or `none` for nats of each position (B, T).
            segments: int (B, T), the number of each token's document: attention does not leave it. Only without a
                cache.

        Returns:
            (logits (B, T, V), loss). The loss is cross-entropy in nats, computed in float32; None without targets.

        Raises:
            ValueError: if tokens are not (B, T) or longer than the context.
        """
        logits_BTV = soft_cap(F.linear(self.hidden(tokens, cache, segments), self.head_weight), self.cfg.logit_softcap)
        if targets is None:
            return logits_BTV, None
        loss = F.cross_entropy(
            logits_BTV.flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORE, reduction=reduction
        )
        return logits_BTV, loss.view_as(targets) if reduction == "none" else loss

    def hidden(self, tokens: Tensor, cache: Cache | None = None, segments: Tensor | None = None) -> Tensor:
        """The input of the output head: (B, T, C). Arguments as for `forward`."""
        if tokens.ndim != 2:
            raise ValueError(f"tokens must have shape (B, T), got {tuple(tokens.shape)}")
        start, T = (0 if cache is None else cache.length), tokens.shape[1]
        if start + T > self.cfg.max_seq_len:
            raise ValueError(
                f"{start + T} tokens are more than the context of {self.cfg.max_seq_len} (model.max_seq_len)"
            )
        mask: AttentionMask | None = None
        if segments is not None and self.block_masks:
            mask = document_blocks(segments, self.cfg.sliding_window)
        elif segments is not None or 0 < self.cfg.sliding_window < start + T:
            mask = visible(T, start + T, start, tokens.device, self.cfg.sliding_window)
            if segments is not None:
                mask = mask & (segments[:, :, None] == segments[:, None, :])[:, None]
        freqs_cis = self.freqs_cis[start : start + T]
        x_BTC = self.tok_embeddings(tokens)
        for i, block in enumerate(self.layers):
            x_BTC = self._block(block, x_BTC, freqs_cis, None if cache is None else cache.layers[i], mask)
        return self.norm(x_BTC)

    def _block(self, block: nn.Module, x: Tensor, *args: Any) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(block, x, *args, use_reentrant=False)
        return block(x, *args)

    def summed_loss(
        self,
        tokens: Tensor,
        targets: Tensor,
        segments: Tensor | None = None,
        *,
        chunk: int,
        z_loss: float = 0.0,
        weights: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """For training: (objective, cross-entropy in nats), summed over valid targets; see `linear_cross_entropy`.

        Args:
            weights: float32 (B, T), the factor of each token in the objective; None: 1.
        """
        x_NC, cap = self._head_input(tokens, segments), self.cfg.logit_softcap
        factors = None if weights is None else weights.flatten()
        return linear_cross_entropy(
            x_NC, self.head_weight, targets.flatten(), chunk=chunk, cap=cap, z_loss=z_loss, token_weights=factors
        )

    def log_likelihoods(self, tokens: Tensor, targets: Tensor, segments: Tensor | None = None, *, chunk: int) -> Tensor:
        """The summed log-probabilities of each row's targets, with a gradient; see `token_nats`.

        Returns:
            (B,) in the dtype of long sums: differences between rows are much smaller than the sums.
        """
        x_NC, cap = self._head_input(tokens, segments), self.cfg.logit_softcap
        nats = token_nats(x_NC, self.head_weight, targets.flatten(), chunk=chunk, cap=cap)
        return -nats.view_as(targets).sum(1, dtype=sum_dtype(nats.device))

    def _head_input(self, tokens: Tensor, segments: Tensor | None) -> Tensor:
        """(B * T, C), in the dtype in which the head multiplies."""
        x_NC = self.hidden(tokens, None, segments).flatten(0, 1)
        if torch.is_autocast_enabled(x_NC.device.type):
            # The residual stream is float32, which is multiplied two to fifteen times slower.
            x_NC = x_NC.to(torch.get_autocast_dtype(x_NC.device.type))
        return x_NC

    @torch.no_grad()
    def nats(self, tokens: Tensor, targets: Tensor, *, chunk: int) -> Tensor:
        """For scoring: the cross-entropy of each position in nats, without the full logits.

        Args:
            tokens, targets: int64 (B, T); positions whose target is -100 get 0.
            chunk: positions whose logits exist at a time.

        Returns:
            float32 (B, T).
        """
        x_NC, cap = self.hidden(tokens).flatten(0, 1), self.cfg.logit_softcap
        parts = [
            F.cross_entropy(
                soft_cap(F.linear(x, self.head_weight), cap).float(), y, ignore_index=IGNORE, reduction="none"
            )
            for x, y in zip(x_NC.split(chunk), targets.flatten().split(chunk), strict=True)
        ]
        return torch.cat(parts).view_as(targets)

    def get_num_params(self, non_embedding: bool = True) -> int:
        """Number of weights; `non_embedding` leaves out the input embedding, tied to the output head or not."""
        n = sum(p.numel() for p in self.parameters())
        return n - self.tok_embeddings.weight.numel() if non_embedding else n
