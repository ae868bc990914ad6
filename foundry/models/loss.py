"""Cross-entropy of the output head without the full logits.

The head of a small model is most of its arithmetic and nearly all of its memory: the logits of 4,096 tokens over 32,768
pieces take 512 MiB in float32, and several times that with their gradient. Here one chunk of tokens after another goes
through the head, the loss and back, so that no more than a chunk of logits ever exists. The gradients of a sum are
known as soon as the chunk's logits are, and are kept for the backward pass (the idea of Liger-Kernel, Hsu et al. 2024,
arXiv:2410.10989).

Letters: N tokens, C dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from foundry.utils.targets import IGNORE


def sum_dtype(device: torch.device) -> torch.dtype:
    """The dtype of sums over many tokens: float64, or float32 on Apple's GPUs, which do not have float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def soft_cap(logits: Tensor, cap: float) -> Tensor:
    """`cap * tanh(logits / cap)`: logits never leave (-cap, cap) (Gemma 2, arXiv:2408.00118); 0 is off."""
    return cap * torch.tanh(logits / cap) if cap else logits


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    chunk: int,
    cap: float = 0.0,
    z_loss: float = 0.0,
    token_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of `soft_cap(x @ weight.T)`, in nats.

    Args:
        x: (N, C) in the dtype of the products; weight: (V, C).
        targets: int64 (N,); IGNORE is not counted.
        chunk: tokens whose logits exist at a time.
        z_loss: weight of the penalty `(log sum exp logits)^2` (PaLM, arXiv:2204.02311).
        token_weights: float32 (N,), the factor of each token's cross-entropy in the objective, of either sign; it gets
            no gradient. None: 1.

    Returns:
        (the objective: weighted cross-entropy and penalty; only the cross-entropy, not weighted and without a
        gradient): float32 scalars.
    """
    return _Head.apply(x, weight, targets, chunk, cap, z_loss, token_weights)


def token_nats(x: Tensor, weight: Tensor, targets: Tensor, *, chunk: int, cap: float = 0.0) -> Tensor:
    """Cross-entropy of each token under `soft_cap(x @ weight.T)`, in nats, with a gradient.

    For objectives that are no sum over tokens, so that a token's share of the gradient is known only after all are
    scored. Only tokens with a target go through the head, and their logits are computed once more in the backward pass.

    Args:
        x: (N, C) in the dtype of the products; weight: (V, C).
        targets: int64 (N,); IGNORE gets 0.
        chunk: tokens whose logits exist at a time.

    Returns:
        float32 (N,).
    """
    at = (targets != IGNORE).nonzero().squeeze(1)
    parts = [
        checkpoint(_nats, x_i, weight, y_i, cap, use_reentrant=False, preserve_rng_state=False)
        for x_i, y_i in zip(x[at].split(chunk), targets[at].split(chunk), strict=True)
    ]
    return torch.zeros(targets.shape, device=x.device).index_copy(0, at, torch.cat(parts))


def _nats(x: Tensor, weight: Tensor, targets: Tensor, cap: float) -> Tensor:
    return F.cross_entropy(soft_cap(F.linear(x, weight), cap).float(), targets, reduction="none")


class _Head(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        chunk: int,
        cap: float,
        z_loss: float,
        token_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        with torch.autocast(x.device.type, enabled=False):
            w = weight.to(x.dtype)
            train = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
            half = x.dtype == torch.float16
            # In float16 the gradient is kept in float32 until the loss's scale is applied: small values would be 0.
            grad_x = torch.empty_like(x, dtype=torch.float32 if half else x.dtype) if train else None
            grad_w = torch.zeros(weight.shape, dtype=torch.float32, device=x.device) if train else None
            total = torch.zeros((), dtype=sum_dtype(x.device), device=x.device)
            nats = torch.zeros_like(total)
            on_cuda = x.device.type == "cuda"
            pieces = torch.arange(len(weight), device=x.device) if on_cuda and train else None
            factors = [None] * -(-len(x) // chunk) if token_weights is None else token_weights.split(chunk)
            gradients = grad_x.split(chunk) if train else x.split(chunk)
            for x_i, y_i, w_i, g_i in zip(x.split(chunk), targets.split(chunk), factors, gradients, strict=True):
                valid = (y_i != IGNORE).unsqueeze(1)
                index = y_i.clamp(min=0).unsqueeze(1)
                logits = soft_cap(F.linear(x_i, w).float(), cap)
                lse = logits.logsumexp(1, keepdim=True)
                at_target = logits.gather(1, index)
                each = (lse - at_target) * valid
                nats_i = each.sum(dtype=total.dtype)
                nats += nats_i
                share = valid if w_i is None else valid * w_i.unsqueeze(1)
                total += nats_i if w_i is None else (each * share).sum(dtype=total.dtype)
                if z_loss:
                    total += z_loss * (lse.square() * valid).sum(dtype=total.dtype)
                if not train:
                    continue
                factor = share + valid * (2 * z_loss * lse) if z_loss else share
                d = (logits - lse).exp_().mul_(factor)
                d_target = (at_target - lse).exp_() * factor - share.float()
                if cap:
                    d = d * (1 - (logits / cap).square())
                    d_target = d_target * (1 - (at_target / cap).square())
                kept = torch.float32 if half else x.dtype
                if pieces is None:  # last, so that the compiler makes one pass of all before
                    d = d.to(kept).scatter_(1, index, d_target.to(kept))
                else:  # CUDA's deterministic scatter sorts the indices, and no compiler joins it with its neighbours
                    d = torch.where(pieces == index, d_target, d).to(kept)
                if half:
                    # A probability below 6e-8 is 0 in float16: first scale the largest entry to near the end of its
                    # range.
                    scale = torch.exp2(torch.floor(torch.log2(2.0**14 / d.abs().amax().clamp(min=1e-30))))
                    d = (d * scale).to(x.dtype)
                    g_i.copy_(_float32_product(d, w) / scale)
                    grad_w += _float32_product(d.T, x_i) / scale
                    continue
                torch.mm(d, w, out=g_i)
                if x.dtype == torch.float32:
                    grad_w.addmm_(d.T, x_i)
                else:
                    grad_w += d.T @ x_i
        if train:
            ctx.save_for_backward(grad_x, grad_w)
        ctx.dtypes = x.dtype, weight.dtype
        nats = nats.float()
        ctx.mark_non_differentiable(nats)
        return total.float(), nats

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple:
        grad_x, grad_w = ctx.saved_tensors
        x_dtype, w_dtype = ctx.dtypes
        scaled = (grad_x * grad.to(grad_x.dtype)).to(x_dtype)
        return scaled, (grad_w * grad).to(w_dtype), None, None, None, None, None


def _float32_product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b of float16 matrices, summed and returned in float32."""
    if a.device.type == "cuda":
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()
