"""Parameters and floating-point operations of a model, computed from its configuration, without torch."""

from __future__ import annotations

from foundry.config import ModelConfig

STATE_BYTES = 16  # per weight in training: itself, its gradient and two moments in float32


def count_params(cfg: ModelConfig, non_embedding: bool = False) -> int:
    """The number of weights of `MiniLLM(cfg)`; a test compares it with the module's own count."""
    attention = cfg.dim * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads)
    layer = attention + 3 * cfg.dim * cfg.ffn_dim
    embedding = cfg.vocab_size * cfg.dim
    total = cfg.n_layers * layer + norm_params(cfg) + embedding * (1 if cfg.tie_embeddings else 2)
    return total - embedding if non_embedding else total


def norm_params(cfg: ModelConfig) -> int:
    """The number of weights of all norms."""
    return cfg.dim * (2 * cfg.n_layers + 1) + (2 * cfg.head_dim * cfg.n_layers if cfg.qk_norm else 0)


def train_flops_per_token(cfg: ModelConfig) -> int:
    """Operations of a forward and backward pass per token: 6 per weight that is multiplied, and causal attention.

    Kaplan et al. 2020 (arXiv:2001.08361), with the output head counted and the input embedding (a lookup) not.
    Attention takes 6 * dim * T per layer: two products, half of the square masked away, three passes. What a sliding
    window, document masks or recomputed activations save or add is not counted.
    """
    matrices = count_params(cfg, non_embedding=True) - norm_params(cfg)
    head = cfg.vocab_size * cfg.dim if cfg.tie_embeddings else 0  # an untied head is in the matrices already
    return 6 * (matrices + head) + 6 * cfg.n_layers * cfg.dim * cfg.max_seq_len


def train_memory_bytes(
    cfg: ModelConfig, micro_rows: int, half: bool, recompute: bool = False, chunk: int = 1024
) -> int:
    """Estimates the memory of training in one process, in bytes.

    It consists of weights, gradients and two moments in float32, and of the activations of a micro-batch that a
    backward pass needs: what the operations of this model keep per token and layer.

    Args:
        micro_rows: sequences of a micro-batch.
        half: whether activations have 16 bits.
        recompute: whether the backward pass computes the activations of a block again.
        chunk: tokens whose logits exist at a time.
    """
    tokens, width = micro_rows * cfg.max_seq_len, 2 if half else 4
    kv = cfg.n_kv_heads * cfg.head_dim
    # Norms and residuals; q and output; k and v; the inner layers of the feed-forward layer.
    layer = 6 * cfg.dim + 3 * cfg.dim + 4 * kv + 4 * cfg.ffn_dim
    kept = cfg.n_layers * cfg.dim + layer if recompute else cfg.n_layers * layer
    head = 3 * min(tokens, chunk) * cfg.vocab_size * 4 + 2 * cfg.vocab_size * cfg.dim * 4
    return STATE_BYTES * count_params(cfg) + tokens * kept * width + head
