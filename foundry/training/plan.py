"""What a run will do, derived before it starts (law 9): pure arithmetic, no torch."""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundry.config import ConfigError, ModelConfig, Runtime, TrainConfig
from foundry.models.accounting import count_params, train_flops_per_token, train_memory_bytes
from foundry.utils.log import get_logger


@dataclass(frozen=True)
class Plan:
    params: int
    non_embedding_params: int
    trained_params: int
    steps: int
    tokens_per_step: int
    tokens: int
    tokens_per_epoch: int
    epochs: float
    flops_per_token: int
    flops: int
    first_loss: float | None  # nats of a uniform guess, ln V; None for a model that is not new
    checkpoint_bytes: int  # trained weights and their moments in float32

    def to_dict(self) -> dict[str, Any]:
        """For a report; without `trained_params` where all are trained."""
        whole = self.trained_params == self.params
        return {k: v for k, v in asdict(self).items() if not (whole and k == "trained_params")}

    def lines(self) -> list[str]:
        return [
            f"model: {self.params:,} parameters ({self.non_embedding_params:,} without the embedding)"
            + (f", {self.trained_params:,} of them trained" if self.trained_params != self.params else ""),
            f"data: {self.tokens:,} tokens = {self.steps:,} steps x {self.tokens_per_step:,}; "
            f"{self.epochs:.2f} epochs of {self.tokens_per_epoch:,}",
            f"work: {self.flops:.2e} floating-point operations, {self.flops_per_token:,} per token "
            "(6 for each weight that is multiplied, 6 x dim x context for the attention of a layer)",
            f"a checkpoint takes about {self.checkpoint_bytes / 2**20:,.0f} MiB",
            *([] if self.first_loss is None else [f"expected first loss: ln V = {self.first_loss:.3f}"]),
        ]


def make_plan(
    model: ModelConfig, train: TrainConfig, tokens_per_epoch: int, *, trained: int | None = None, new: bool = True
) -> Plan:
    """
    Args:
        trained: parameters that are trained; None: all.
        new: whether the weights are the first ones.
    """
    tokens = train.steps * train.tokens_per_step
    params = count_params(model)
    trained = params if trained is None else trained
    return Plan(
        params=params,
        trained_params=trained,
        non_embedding_params=count_params(model, non_embedding=True),
        steps=train.steps,
        tokens_per_step=train.tokens_per_step,
        tokens=tokens,
        tokens_per_epoch=tokens_per_epoch,
        epochs=round(tokens / tokens_per_epoch, 4),
        flops_per_token=train_flops_per_token(model),
        flops=tokens * train_flops_per_token(model),
        first_loss=round(math.log(model.vocab_size), 4) if new else None,
        checkpoint_bytes=trained * 12,
    )


def checkpoint_space(plan: Plan, runtime: Runtime, pinned: frozenset[int], folder: Path) -> tuple[int, int, Path]:
    """(bytes that the run's checkpoints will still take, bytes that are free, the folder that was asked).

    Most checkpoints exist while one is being written and none has been removed yet.

    Args:
        folder: the run's state; the checkpoints in it count, up to the number that will be kept.
    """
    saves = {*range(runtime.checkpoint_interval, plan.steps, runtime.checkpoint_interval), plan.steps, *pinned}
    most = min(runtime.keep_checkpoints + len(pinned) + 1, len(saves))
    here = [_bytes_of(step) for step in sorted((folder / "checkpoints").glob("step-*"))][-most:]
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return max(0, most * plan.checkpoint_bytes - sum(here)), shutil.disk_usage(there).free, there


def _bytes_of(folder: Path) -> int:
    try:
        return sum(f.stat().st_size for f in folder.iterdir())
    except FileNotFoundError:  # removed just now by the process that trains this run
        return 0


def check_plan(
    plan: Plan,
    model: ModelConfig,
    train: TrainConfig,
    runtime: Runtime,
    micro_rows: int,
    folder: Path,
    *,
    precision: str,
    compiled: bool,
    device: str,
    processes: int,
    memory: int | None,
    pinned: frozenset[int] = frozenset(),
) -> None:
    """Refuses what cannot work, with all problems reported at once; warns of what may not.

    Args:
        precision: what `runtime.precision` came to on the device: float32, bfloat16 or float16.
        compiled: whether the run is.
        device: its kind.
        processes: that train together.
        memory: bytes that one of them may use on its device; None if unknown.
        pinned: steps whose checkpoints are never removed.

    Raises:
        ConfigError: listing every problem.
    """
    problems = []
    needed, free, there = checkpoint_space(plan, runtime, pinned, folder)
    if needed > free:
        problems.append(
            f"checkpoints need {needed / 2**20:,.2f} MiB more ({runtime.keep_checkpoints} newest, "
            f"{len(pinned)} pinned, one being written, without those that exist), {free / 2**20:,.2f} MiB are free "
            f"in {there}: make room or lower runtime.keep_checkpoints"
        )
    divided = runtime.parallel == "fsdp" and processes > 1
    if divided and precision == "float16":
        problems.append(
            f"runtime.parallel fsdp needs bfloat16 or float32, and runtime.precision {runtime.precision} is float16 on "
            "this device: set runtime.precision: float32"
        )
    if problems:
        raise ConfigError("training cannot start:" + "".join(f"\n  - {p}" for p in problems))
    needs = train_memory_bytes(
        model,
        micro_rows,
        precision != "float32",
        runtime.recompute,
        runtime.loss_chunk,
        compiled=compiled,
        muon=train.optimizer == "muon",
        accumulates=train.tokens_per_step > processes * micro_rows * model.max_seq_len,
        divided=processes if divided else 1,
        device=device,
    )
    if memory and needs > memory:
        get_logger().warning(
            "training may need %.1f GiB, its device has %.1f for each process: set runtime.recompute, or lower "
            "runtime.micro_batch_tokens",
            needs / 2**30,
            memory / 2**30,
        )


def check_batch(recipe: TrainConfig, loaders: dict[str, Any]) -> None:
    """Refuses a recipe that says something else of the batch than the loader has.

    Raises:
        ConfigError: naming the keys that differ.
    """
    said = {k: getattr(recipe, k) for k in ("tokens_per_step", "packing") if k in recipe.model_fields_set}
    if recipe.batch_size is not None:
        said["batch_size"] = recipe.batch_size
    if differ := [f"{k} {v} there, {loaders[k]} of the loader" for k, v in said.items() if v != loaders[k]]:
        raise ConfigError(
            f"the recipe and the data loader have different batches ({'; '.join(differ)}): leave these keys out of the "
            "recipe, or make the loader with the same values"
        )
