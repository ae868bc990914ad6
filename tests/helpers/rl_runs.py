"""Reinforcement learnings of a tiny model in processes of their own, which tests kill; see `sft_runs`."""

import json
from dataclasses import dataclass, field
from pathlib import Path

from killed_runs import process_of, run, sender

from foundry.chat.example import Example, Turn
from foundry.config import Runtime
from foundry.config.chat import Lora, Rl

RECIPE = {
    "steps": 8,
    "prompts": 2,
    "samples": 4,
    "max_new_tokens": 8,
    "kl": 0.05,
    "lr": 2e-4,
    "warmup_steps": 1,
    "log_interval": 1,
    "eval_interval": 4,
    "probe_prompts": 4,
    "eval_prompts": 4,
    "eval_tokens": 300,
    "lora": Lora(rank=4, alpha=8.0),
}

SAID = Turn("assistant", "a, e")


def make_folders(folder, tokenizer, shards):
    """What a training reads: a model whose answers end, and prompts of which about half of the answers are right."""
    from conversations import write_conversations
    from toy_rl import ends, tiny

    from foundry.models import TrainingFacts, save_model
    from foundry.tokenizers.chat import TEMPLATE_SHA256

    facts = TrainingFacts(
        fingerprint="s",
        tokenizer_sha256=tokenizer.sha256,
        index_sha256="i",
        steps=1,
        tokens=1,
        template_sha256=TEMPLATE_SHA256,
        base_sha256="b" * 64,
    )
    save_model(folder / "parent", ends(tiny(), tokenizer), facts)
    wanted = {"expected": ["a"]}
    examples = {
        split: [
            Example((Turn("user", f"{split} {i}"), SAID), "letters", "toy", None, 0, split, "contains", wanted)
            for i in range(8)
        ]
        for split in ("train", "val")
    }
    write_conversations(folder / "chat", tokenizer, **examples)
    return {"parent": folder / "parent", "tokenizer": tokenizer.path.parent, "chat": folder / "chat", "text": shards}


@dataclass
class Job:
    """A training: `folders` as those of `foundry.chat.rl_training.RlFolders`, its state, and the model it writes."""

    folders: dict
    state: Path
    out: Path
    recipe: dict = field(default_factory=dict)
    runtime: dict = field(default_factory=dict)


def training_of(job, here):
    from foundry.chat.rl_training import RewardTraining, RlFolders

    runtime = Runtime(**{"threads": 1, "checkpoint_interval": 2, "device": "cpu", "precision": "float32"} | job.runtime)
    folders = RlFolders(**job.folders)
    return RewardTraining(
        Rl(**RECIPE | job.recipe), folders, seed=3, runtime=runtime, world=here, state=Path(job.state)
    )


def work(job, progress=None, rank=None):
    """In the process: trains, sends the number of each step, and writes what `results` reads.

    Args:
        rank: (this process, their number, a port) of several.
    """
    from foundry.models import save_model

    with process_of(rank) as here:
        learnt = training_of(job, here).run(Path(f"{job.out}.parquet"), [sender(progress)])
        if learnt is None:
            return
        numbers = [learnt.curve, learnt.validations, learnt.report.model_dump(), [s.metrics() for s in learnt.steps]]
        Path(f"{job.out}.json").write_text(json.dumps(numbers))
        save_model(job.out, learnt.model, learnt.facts)


def finish(job, processes=1):
    """Runs a training to its end and returns its results."""
    run(work, job, processes)
    return results(job)


def results(job):
    """The bytes of the model and of the rollouts, and the numbers."""
    model, rollouts = Path(job.out) / "model.safetensors", Path(f"{job.out}.parquet")
    return model.read_bytes(), rollouts.read_bytes(), json.loads(Path(f"{job.out}.json").read_text())
