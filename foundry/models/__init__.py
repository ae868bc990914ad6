"""Components, transformer, parameter and FLOP accounting."""

from foundry.models.components import (
    MLP,
    CausalSelfAttention,
    FlashAttention,
    RMSNorm,
    apply_rotary_emb,
    precompute_freqs_cis,
)
from foundry.models.files import load_model, save_model
from foundry.models.transformer import Block, MiniLLM

__all__ = [
    "MLP",
    "Block",
    "CausalSelfAttention",
    "FlashAttention",
    "MiniLLM",
    "RMSNorm",
    "apply_rotary_emb",
    "load_model",
    "precompute_freqs_cis",
    "save_model",
]
