"""How fast fine-tuning trains beside pre-training, and how much memory an adapter over int8 matrices saves.

    python -m benchmarks.sft [--root PROJECT] [--rounds N] [--steps N]

Speed: steps of the same model with the same number of tokens, in one process that trains each side in turns: rows of
pre-training text, rows of conversations with masks between them, and these with an adapter. Memory: the bytes of what
a training keeps beside its activations, counted from the tensors, of a model with the shape of profile gpu-1b.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.chat.sft import FineTuning, Folders
from foundry.config import Runtime, load_params
from foundry.config.profiles import profile_config
from foundry.models import MiniLLM
from foundry.models.accounting import count_params
from foundry.models.adapter import Adapter, adapt
from foundry.training import Trainer
from foundry.training.numerics import numerics
from foundry.utils.distributed import World

RATE = Measure("tokens/s", more_is_better=True)


def stepping(trainer: Trainer, steps: int) -> Callable[[], float]:
    """A turn: tokens per second of some steps; the first ones, which compile, do not count."""
    done = 0

    def turn() -> float:
        nonlocal done
        with numerics(trainer.runtime, trainer.world):
            session = trainer.session()
            if not done:
                for _ in range(3):
                    session.step(session.state)
                    session.state.step += 1
            begin = time.perf_counter()
            for _ in range(steps):
                session.step(session.state)
                session.state.step += 1
            done += steps
            return steps * trainer.config.tokens_per_step / (time.perf_counter() - begin)

    return turn


def kept_bytes(weights: str) -> int:
    """Bytes of weights, gradients and AdamW's moments; `weights`: full, float32 or int8."""
    cfg = profile_config("gpu-1b").model
    with torch.device("meta"):
        model = MiniLLM(cfg)
    if weights != "full":
        with torch.device("meta"):
            adapt(model, Adapter(16, 32.0, (4, 5), weights), 0)
    tensors = [*model.parameters(), *model.buffers()]
    trained = sum(4 * 3 * p.numel() for p in model.parameters() if p.requires_grad)
    return sum(t.numel() * t.element_size() for t in tensors) + trained


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_rounds(parser, 5)
    parser.add_argument("--root", type=Path, default=Path(), help="project with data/chat, data/shards and a model")
    parser.add_argument("--steps", type=int, default=20, help="steps of a turn (default: %(default)s)")
    args = parser.parse_args()
    cfg, root = load_params(), args.root
    runtime, here = Runtime(device="cpu", compile="always"), World(0, 1, torch.device("cpu"))
    folders = Folders(*(root / name for name in ("artifacts/model", "artifacts/tokenizer", "data/chat", "data/shards")))
    with tempfile.TemporaryDirectory() as state:
        common = {"seed": 1, "runtime": runtime, "world": here, "state": Path(state)}
        many = {"steps": 10**6, "rows_per_step": cfg.train.tokens_per_step // cfg.model.max_seq_len}
        sides = {"pre-training": Trainer.from_shards(cfg.model, cfg.train, root / "data/shards", **common)}
        for method in ("full", "lora"):
            sft = cfg.sft.model_copy(update={**many, "method": method})
            sides[f"fine-tuning, {method}"] = FineTuning(sft, folders, **common).trainer
        turns = {name: stepping(trainer, args.steps) for name, trainer in sides.items()}
        take_turns(turns, args.rounds, RATE).print("step", "pre-training")
    title = f"kept by a model of {count_params(profile_config('gpu-1b').model):,} weights"
    print(f"\n{title:50}{'GiB':>8}")
    for name, weights in (("all weights trained", "full"), ("adapter", "float32"), ("adapter, int8 matrices", "int8")):
        print(f"{name:50}{kept_bytes(weights) / 2**30:>8.2f}")


if __name__ == "__main__":
    main()
