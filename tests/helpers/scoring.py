"""A small model with weights that are not those of the start."""

import torch

from foundry.config import ModelConfig
from foundry.models import MiniLLM


def tiny(seed=0, **changes):
    shape = {
        "vocab_size": 400,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 2,
        "n_kv_heads": 1,
        "ffn_dim": 32,
        "max_seq_len": 32,
    }
    torch.manual_seed(seed)
    model = MiniLLM(ModelConfig(**(shape | changes)))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model.eval()
