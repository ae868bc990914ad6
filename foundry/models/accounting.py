"""Parameters and floating-point operations of a model, computed from its configuration, without torch."""

from __future__ import annotations

from foundry.config import ModelConfig

PRODUCTS_UP_TO = 512  # tokens that a CPU attends to by `causal_products`


def count_params(cfg: ModelConfig, non_embedding: bool = False) -> int:
    """The number of weights of `MiniLLM(cfg)`; a test compares it with the module's own count."""
    embedding = cfg.vocab_size * cfg.dim
    total = cfg.n_layers * _matrices_of_a_layer(cfg) + norm_params(cfg) + embedding * (1 if cfg.tie_embeddings else 2)
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
    cfg: ModelConfig,
    micro_rows: int,
    half: bool,
    recompute: bool = False,
    chunk: int = 1024,
    *,
    compiled: bool = False,
    muon: bool = True,
    accumulates: bool = False,
    divided: int = 1,
    device: str = "cuda",
) -> int:
    """Estimates the most memory that training takes at a time in one process, in bytes.

    Weights and moments in float32 are always there. Beside them are, where the passes meet, what the backward pass
    needs, and a chunk of logits or the first slopes; in the optimizer, the gradients and what Muon makes of the largest
    group of equal matrices. The largest sum counts. Each term was found by measuring the allocator (torch 2.13) with
    one size changed.

    Args:
        micro_rows: sequences of a micro-batch.
        half: whether activations have 16 bits.
        recompute: whether the backward pass computes the activations of a block again.
        chunk: tokens whose logits exist at a time.
        compiled: whether torch.compile decides what is kept: it computes norms and SwiGLU again.
        muon: whether the matrices of the layers have one moment, not two.
        accumulates: whether a step has several micro-batches: gradients are then there in the forward pass.
        divided: processes among which FSDP divides weights, gradients and moments.
        device: its kind; on a CPU attention to few tokens keeps its scores (see `causal_products`).
    """
    weights, width = count_params(cfg), 2 if half else 4
    matrices = cfg.n_layers * _matrices_of_a_layer(cfg)
    tokens = micro_rows * cfg.max_seq_len
    always = 12 * weights - (4 * matrices if muon else 0)
    products = half and device == "cpu" and cfg.max_seq_len <= PRODUCTS_UP_TO
    scores = width * cfg.n_heads * cfg.max_seq_len if products else 0
    layer = tokens * (_kept_per_token(cfg, width, compiled) + scores) + width * _matrices_of_a_layer(cfg)
    table = cfg.vocab_size * cfg.dim
    last = tokens * ((10 if compiled else 16) * cfg.dim + 16)  # the last norm, the gradient of its result, the batch
    head = min(tokens, chunk) * cfg.vocab_size * (8 if compiled else 12) + (4 + width % 4) * table
    inner = width * cfg.ffn_dim
    slopes = 6 * cfg.dim + (5 * inner // 2 if compiled else 2 * inner)  # of a layer's activations
    back = tokens * (slopes if compiled else max(24 * cfg.dim, slopes)) + 8 * table  # 24: of the last norm
    passes = cfg.n_layers * layer + max(last + head, back)
    if recompute:  # of all layers their inputs only; the last one that is computed again finds the others' gradients
        inputs = tokens * 4 * cfg.dim
        others = max(cfg.n_layers * inputs, inputs + 4 * (matrices - matrices // cfg.n_layers))
        again = others + layer + tokens * slopes + (8 if compiled else 4) * table
        passes = max(cfg.n_layers * inputs + last + head, again)
    gradients = 4 * weights // divided
    update = gradients + (18 * _largest_group(cfg) if muon else 0)
    return always // divided + max(passes + (gradients if accumulates else 0), update)


def _matrices_of_a_layer(cfg: ModelConfig) -> int:
    return cfg.dim * cfg.head_dim * (2 * cfg.n_heads + 2 * cfg.n_kv_heads) + 3 * cfg.dim * cfg.ffn_dim


def _kept_per_token(cfg: ModelConfig, width: int, compiled: bool) -> int:
    """Bytes that the backward pass of a layer needs of a token.

    The residual before and between its parts; inputs of the products; queries, keys, values and the result of the
    attention with its normaliser; the inner activations of the feed-forward layer.
    """
    heads = cfg.n_heads + cfg.n_kv_heads
    inner = heads * cfg.head_dim
    norms = (4 + width) * inner + 4 * heads if cfg.qk_norm and not compiled else 0
    stream, gated = (8, 3) if compiled else (16, 4)
    residual = (stream + 2 * width) * cfg.dim + 8
    return residual + 3 * width * inner + 4 * cfg.n_heads + norms + gated * width * cfg.ffn_dim


def _largest_group(cfg: ModelConfig) -> int:
    """Elements of the largest group of equal matrices, which Muon takes together."""
    queries = cfg.n_heads * cfg.head_dim
    return cfg.n_layers * cfg.dim * max(2 * cfg.ffn_dim, queries * (2 if queries == cfg.dim else 1))
