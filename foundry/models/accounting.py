"""Parameters and floating-point operations of a model, from its configuration alone (no torch)."""

from __future__ import annotations

from foundry.config import ModelConfig


def count_params(cfg: ModelConfig, non_embedding: bool = False) -> int:
    """Weights of `MiniLLM(cfg)`; a test compares it with the module's own count."""
    attention = cfg.dim * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    layer = attention + 3 * cfg.dim * cfg.ffn_dim + 2 * cfg.dim
    embedding = cfg.vocab_size * cfg.dim
    total = cfg.n_layers * layer + cfg.dim + embedding * (1 if cfg.tie_embeddings else 2)
    return total - embedding if non_embedding else total


def train_flops_per_token(cfg: ModelConfig) -> int:
    """Operations of a forward and backward pass for one token: 6 for each weight that is multiplied, and causal attention.

    Kaplan et al. 2020 (arXiv:2001.08361), with the output head counted and the input embedding (a lookup) not; attention takes
    6 * dim * T for each layer: two products, half of the square masked away, three passes.
    """
    matrices = count_params(cfg, non_embedding=True) - cfg.dim * (2 * cfg.n_layers + 1)
    head = cfg.vocab_size * cfg.dim if cfg.tie_embeddings else 0  # an untied head is in the matrices already
    return 6 * (matrices + head) + 6 * cfg.n_layers * cfg.dim * cfg.max_seq_len
