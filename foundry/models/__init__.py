"""The model: components, transformer, loss, counts of parameters and operations, files."""

from foundry.models.components import (
    MLP,
    CausalSelfAttention,
    FlashAttention,
    RMSNorm,
    apply_rotary_emb,
    precompute_freqs_cis,
)
from foundry.models.facts import ModelFacts, TrainingFacts
from foundry.models.files import load_model, load_trained_model, save_model
from foundry.models.transformer import Block, MiniLLM

__all__ = [
    "MLP",
    "Block",
    "CausalSelfAttention",
    "FlashAttention",
    "MiniLLM",
    "ModelFacts",
    "RMSNorm",
    "TrainingFacts",
    "apply_rotary_emb",
    "load_model",
    "load_trained_model",
    "precompute_freqs_cis",
    "save_model",
]
