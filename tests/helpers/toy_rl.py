"""A tiny model whose answers end, and prompts whose answers a function of the text rewards."""

from pathlib import Path

import torch

from foundry.chat.rl import RolloutLoader
from foundry.chat.rollouts import Prompt
from foundry.chat.verifiers import Verdict
from foundry.config import ModelConfig
from foundry.models import MiniLLM
from foundry.tokenizers.chat import end_of_turn
from foundry.utils.distributed import World

ALONE = World(0, 1, torch.device("cpu"))
SHAPE = {"vocab_size": 400, "dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 48, "max_seq_len": 48}


def tiny(seed=0, **changes):
    torch.manual_seed(seed)
    return MiniLLM(ModelConfig(**{**SHAPE, "zero_init": False, "tie_embeddings": False, **changes}))


def ends(model, tokenizer, strength=2.0):
    """A model whose answers end: all tokens share a direction, which the end of a turn looks for."""
    with torch.no_grad():
        model.tok_embeddings.weight[:, 0] = 0.2
        for i in end_of_turn(tokenizer):
            model.output.weight[i, 0] = strength
    return model


def pool(n=6, task="toy"):
    return [Prompt((1, 10 + i, 30 + 2 * i), f"question {i}", task, None, "none", {}) for i in range(n)]


def even(prompt, text):
    """Rewards texts of an even length."""
    return Verdict(float(len(text) % 2 == 0), {"even": float(len(text) % 2 == 0)})


def short(prompt, text):
    """Rewards texts of at most two characters."""
    return Verdict(float(len(text) < 3))


def loader(tokenizer, folder, model=None, judge=even, **changes):
    options = {"groups": 2, "samples": 4, "limit": 12, "seed": 3, "world": ALONE, "folder": Path(folder), **changes}
    return RolloutLoader(model or tiny(), tokenizer, pool(), judge=judge, **options)


class Nothing:
    """A validator without metrics but the one that a trainer reads."""

    @property
    def identity(self):
        return {}

    def __call__(self, model, apply, precision, rows):
        return {"val_loss": 0.0}
