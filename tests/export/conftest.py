"""A tiny model, random in every tensor: freshly made ones have zero outputs, which would hide half of all mistakes."""

import pytest
import torch

from foundry.config import ModelConfig
from foundry.models import MiniLLM


def randomised(cfg: ModelConfig, seed: int = 0) -> MiniLLM:
    torch.manual_seed(seed)
    model = MiniLLM(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    return model


@pytest.fixture(scope="session")
def make_model():
    return randomised


@pytest.fixture(scope="module")
def model():
    return randomised(
        ModelConfig(
            vocab_size=400,
            dim=64,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            ffn_dim=96,
            max_seq_len=64,
            rope_theta=5000.0,
            norm_eps=1e-3,
        )
    )
