"""Fine-tunings of a tiny model in processes of their own, which tests kill.

The processes are forked from a server that has imported PyTorch and nothing else has run, so that one starts in some
hundredths of a second.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from killed_runs import process_of, run, sender

from foundry.config import ModelConfig, Runtime
from foundry.config.chat import Lora, Sft

SHAPE = {"vocab_size": 400, "dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 48, "max_seq_len": 128}
RECIPE = {
    "steps": 12,
    "rows_per_step": 4,
    "pretraining_share": 0.25,
    "warmup_steps": 1,
    "log_interval": 1,
    "eval_interval": 6,
    "eval_examples": 8,
    "eval_tokens": 300,
    "lora": Lora(rank=4, alpha=8.0),
}


def make_base(folder, tokenizer, dropout=0.1):
    """A base model whose blocks do something, as the train stage writes it."""
    import torch

    from foundry.models import MiniLLM, TrainingFacts, save_model

    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(**SHAPE, zero_init=False, dropout=dropout))
    facts = TrainingFacts(fingerprint="b", tokenizer_sha256=tokenizer.sha256, index_sha256="i", steps=1, tokens=1)
    save_model(folder, model, facts)
    return folder


@dataclass
class Job:
    """A fine-tuning: `folders` as those of `foundry.chat.sft.Folders`, its state, and the model that it writes."""

    folders: dict
    state: Path
    out: Path
    recipe: dict = field(default_factory=dict)
    runtime: dict = field(default_factory=dict)


def tuning_of(job, here):
    from foundry.chat.sft import FineTuning, Folders

    runtime = Runtime(**{"threads": 1, "checkpoint_interval": 2, "device": "cpu", "precision": "float32"} | job.runtime)
    sft = Sft(**RECIPE | job.recipe)
    return FineTuning(sft, Folders(**job.folders), seed=3, runtime=runtime, world=here, state=Path(job.state))


def work(job, progress=None, rank=None):
    """In the process: trains, sends the number of each step, and writes what `results` reads.

    Args:
        rank: (this process, their number, a port) of several.
    """
    from foundry.models import save_model
    from foundry.models.adapter_files import save_adapter

    with process_of(rank) as here:
        tuning = tuning_of(job, here)
        tuned = tuning.run([sender(progress)])
        if tuned is None:
            return
        if tuned.adapted is not None:
            save_adapter(f"{job.out}.adapter", tuned.adapted, tuning.base.weights_sha256, tuned.facts)
        Path(f"{job.out}.json").write_text(json.dumps([tuned.curve, tuned.validations, tuned.report.model_dump()]))
        save_model(job.out, tuned.model, tuned.facts)


def finish(job, processes=1):
    """Runs a training to its end and returns its results."""
    run(work, job, processes)
    return results(job)


def results(job):
    """The bytes of the model, of the adapter if there is one, and the curves and report."""
    files = [Path(job.out) / "model.safetensors", Path(f"{job.out}.adapter") / "adapter_model.safetensors"]
    return [f.read_bytes() for f in files if f.exists()], json.loads(Path(f"{job.out}.json").read_text())
