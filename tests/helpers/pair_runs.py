"""Trainings on pairs of a tiny model, in this process and in processes of their own, which tests kill."""

import json
import random
from dataclasses import dataclass, field
from pathlib import Path

from killed_runs import process_of, run, sender

from foundry.config import Runtime
from foundry.config.chat import Dpo, Reward

RECIPE = {
    "steps": 8,
    "pairs_per_step": 4,
    "lr": 2e-3,
    "warmup_steps": 1,
    "log_interval": 1,
    "eval_interval": 4,
    "eval_pairs": 12,
}
KINDS = {"dpo": Dpo, "reward": Reward}


def make_pairs(n=24, seed=0):
    """The chosen answer has the letter of its question, the rejected one another; lengths differ at random."""
    from foundry.chat.example import Turn
    from foundry.chat.pairs import PreferencePair

    rng = random.Random(seed)
    pairs = []
    for i in range(n):
        right, wrong = rng.sample("abcdefgh", 2)
        prompt = (Turn("user", f"letter {right} {i}"),)
        sides = [(Turn("assistant", letter * rng.randrange(1, 6)),) for letter in (right, wrong)]
        pairs.append(PreferencePair(prompt, *sides, "letters", "sampled", "train" if i % 3 else "val"))
    return pairs


def make_folders(folder, tokenizer, **changes):
    """What a training reads: a model that knows the chat template, its tokenizer, pairs."""
    from toy_rl import tiny

    from foundry.chat.pairs import write_pairs
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
    save_model(folder / "parent", tiny(tie_embeddings=True, **changes), facts)
    write_pairs(folder / "pairs", make_pairs(), {"made": "by hand"})
    return {"parent": folder / "parent", "tokenizer": tokenizer.path.parent, "pairs": folder / "pairs"}


@dataclass
class Job:
    """A training: `folders` as those of `PairFolders`, its state, and the model it writes."""

    kind: str
    folders: dict
    state: Path
    out: Path
    recipe: dict = field(default_factory=dict)
    runtime: dict = field(default_factory=dict)


def training_of(job, here):
    from foundry.chat.pair_training import PairFolders, PairTraining

    runtime = Runtime(**{"threads": 1, "checkpoint_interval": 2, "device": "cpu", "precision": "float32"} | job.runtime)
    return PairTraining(
        KINDS[job.kind](**RECIPE | job.recipe),
        PairFolders(**job.folders),
        seed=3,
        runtime=runtime,
        world=here,
        state=Path(job.state),
        references=Path(job.state) / "references",
    )


def work(job, progress=None, rank=None):
    """In the process: trains, sends the number of each step, and writes what `results` reads.

    Args:
        rank: (this process, their number, a port) of several.
    """
    from foundry.models import save_model

    with process_of(rank) as here:
        trained = training_of(job, here).run([sender(progress)])
        if trained is None:
            return
        numbers = [trained.curve, trained.validations, trained.report.model_dump()]
        Path(f"{job.out}.json").write_text(json.dumps(numbers))
        save_model(job.out, trained.model, trained.facts)


def finish(job, processes=1):
    """Runs a training to its end and returns its results."""
    run(work, job, processes)
    return results(job)


def results(job):
    """The bytes of the model, and the numbers."""
    return (Path(job.out) / "model.safetensors").read_bytes(), json.loads(Path(f"{job.out}.json").read_text())
