"""What a training will do and need, before it begins. Behind `foundry plan`.

Joins the plan of the training, the check of the parameters, and the time that a run will take.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import Config
from foundry.data.tokens.index import NAME as INDEX
from foundry.data.tokens.index import read_index
from foundry.models.accounting import train_memory_bytes
from foundry.project.check import Findings, checked
from foundry.training.plan import Plan, make_plan
from foundry.training.probe import UTILISATION, gpu_seconds, probe_seconds

SHARDS = Path("data/shards")
MICRO_BATCH_TOKENS = 4096  # assumed where runtime.micro_batch_tokens leaves the choice to the trainer


@dataclass(frozen=True)
class Forecast:
    """A training as its parameters describe it.

    Attributes:
        findings: what the check of the parameters found.
        rows: sequences of one forward pass.
        seq_len: tokens of a sequence.
        memory: {number format: bytes of the device's memory that training takes}.
        sharded: whether the tokens of an epoch are those of the shards; otherwise the whole run counts as one epoch.
    """

    plan: Plan
    findings: Findings
    rows: int
    seq_len: int
    memory: dict[str, int]
    sharded: bool

    def to_dict(self) -> dict[str, Any]:
        return {**self.plan.to_dict(), "will_not_export": self.findings.export, "notes": self.findings.notes}

    def lines(self) -> list[str]:
        out = [*self.plan.lines(), *self.findings.lines()]
        for name, memory in self.memory.items():
            sequences = f"{self.rows} sequences of {self.seq_len} tokens at a time"
            out.append(f"memory: about {memory / 2**30:.1f} GiB in {name}, {sequences}")
        if not self.sharded:
            reason = "data/shards does not exist yet, or belongs to another profile"
            out.append(f"the number of epochs is known after the shard stage: {reason}")
        return out


def forecast(cfg: Config, root: Path, origin: str, shards: Path | None) -> Forecast:
    """Plans a training.

    Args:
        root: the project's folder.
        origin: names the parameters in error messages.
        shards: the folder of the shards that these parameters describe, which need not exist; None if there is none.

    Raises:
        ConfigError: listing every problem of the parameters.
        FoundryError: if the index of the shards cannot be read.
    """
    findings = checked(cfg, root, origin)
    if sharded := shards is not None and (shards / INDEX).exists():
        per_epoch = read_index(shards).splits["train"].epoch_tokens
    else:
        per_epoch = cfg.train.steps * cfg.train.tokens_per_step
    rows = max(1, (cfg.runtime.micro_batch_tokens or MICRO_BATCH_TOKENS) // cfg.model.max_seq_len)
    memory = {
        name: train_memory_bytes(
            cfg.model,
            rows,
            half,
            cfg.runtime.recompute,
            cfg.runtime.loss_chunk,
            muon=cfg.train.optimizer == "muon",
            accumulates=cfg.train.tokens_per_step > rows * cfg.model.max_seq_len,
        )
        for name, half in (("float32", False), ("bfloat16", True))
    }
    plan = make_plan(cfg.model, cfg.train, per_epoch)
    return Forecast(plan, findings, rows, cfg.model.max_seq_len, memory, sharded)


def time_on_gpus(plan: Plan, gpu: str, count: int) -> str:
    """How long the training takes on `count` GPUs of a kind, by their data sheet.

    Raises:
        ConfigError: for an unknown GPU or an impossible number of them.
    """
    seconds = gpu_seconds(plan, gpu, count)
    return f"time: about {_duration(seconds)} on {count} x {gpu}, at {UTILISATION:.0%} of its peak (an assumption)"


def time_here(cfg: Config) -> str:
    """How long the training takes on this machine, by some of its own steps.

    Raises:
        FoundryError: as for the training itself.
    """
    return f"time: about {_duration(probe_seconds(cfg))} on this machine (from 20 steps of the run itself)"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"
