"""The models of the peers, as an expert trains them on a GPU.

nanoGPT's algorithm is written here from its description: GPT-2 blocks with LayerNorm and GELU, learned positions, tied
embeddings, flash attention, batches cut at random from a memory-mapped file.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.throughput import GPTBlock, llama
from foundry.config import ModelConfig
from foundry.models.accounting import train_flops_per_token


class NanoGPT(nn.Module):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(cfg.vocab_size, cfg.dim), nn.Embedding(cfg.max_seq_len, cfg.dim)
        self.blocks = nn.ModuleList(GPTBlock(cfg.dim, cfg.n_heads) for _ in range(cfg.n_layers))
        self.ln = nn.LayerNorm(cfg.dim, bias=False)
        nn.init.normal_(self.wte.weight, std=0.02)
        nn.init.normal_(self.wpe.weight, std=0.02)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1], device=x.device))
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(F.linear(self.ln(h), self.wte.weight).flatten(0, 1), y.flatten())


def nanogpt_flops(cfg: ModelConfig) -> int:
    """Operations per token of its training, counted as `train_flops_per_token` counts ours."""
    matrices = 12 * cfg.n_layers * cfg.dim**2 + cfg.vocab_size * cfg.dim
    return 6 * matrices + 6 * cfg.n_layers * cfg.dim * cfg.max_seq_len


LossOf = Callable[[Tensor, Tensor], Tensor]


def nanogpt_training(cfg: ModelConfig, recompute: bool) -> tuple[nn.Module, LossOf, int]:
    """(the model, the mean loss of a micro-batch, operations per token)."""
    if recompute:
        raise torch.OutOfMemoryError("nanoGPT does not recompute activations, and one sequence does not fit")
    model = NanoGPT(cfg)
    return model, model, nanogpt_flops(cfg)


def llama_training(cfg: ModelConfig, recompute: bool) -> tuple[nn.Module, LossOf, int]:
    model = llama(cfg).train()
    if recompute:
        model.gradient_checkpointing_enable()

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(model(x, use_cache=False).logits.flatten(0, 1).float(), y.flatten())

    return model, loss_of, train_flops_per_token(cfg)


PEERS = {"nanogpt": nanogpt_training, "transformers": llama_training}
