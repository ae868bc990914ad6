"""Set-up of a run: how it is carried out on this machine, and everything that its loop works with.

Only the last bits of a result depend on this module.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from foundry.config import ModelConfig, Runtime, TrainConfig
from foundry.models import MiniLLM
from foundry.training.ahead import Library, compiles_ahead
from foundry.training.numerics import Execution, compiled, precision_reason, wants_compile
from foundry.training.optimizer import Optimizers
from foundry.training.parallel import Parallel
from foundry.training.plan import Plan
from foundry.training.protocols import Loader, Loss
from foundry.training.skipped import SkippedBatches
from foundry.training.state import TrainState
from foundry.training.step import Backward, TrainStep
from foundry.utils.allocator import allocator
from foundry.utils.device import resolve_precision
from foundry.utils.distributed import World
from foundry.utils.files import state_dir
from foundry.utils.log import get_logger

MICRO_TOKENS = {"cpu": 4096}  # of a forward pass, where runtime.micro_batch_tokens does not say; other devices: 16,384


@dataclass(frozen=True)
class Session:
    """What the loop of one run works with; made once."""

    state: TrainState
    step: TrainStep
    parallel: Parallel


def precision_and_rows(runtime: Runtime, world: World, loader: Loader) -> tuple[torch.dtype, int]:
    """(precision, sequences of one forward pass).

    Where `runtime` does not say, as many sequences as the device's limit allows and as divide the batch.
    """
    rows = loader.batch_size // world.size
    wanted = runtime.micro_batch_tokens or MICRO_TOKENS.get(world.device.type, 16_384)
    limit = max(1, wanted // loader.seq_len)
    micro_rows = next(n for n in range(min(limit, rows), 0, -1) if rows % n == 0)
    return resolve_precision(runtime.precision, world.device), micro_rows


def resolve(
    runtime: Runtime, world: World, precision: torch.dtype, micro_rows: int, plan: Plan, loader: Loader, loss: Loss
) -> Execution:
    """Decides whether to compile, which is tried first.

    Raises:
        ConfigError: if compiling is asked for and does not work here.
    """
    if runtime.compile == "auto" and loader.widths_vary:
        return Execution(precision, micro_rows, False, "each width of its batches would be compiled by itself")
    ahead = compiles_ahead(world, runtime, precision, loss)
    is_compiled, why_not = wants_compile(runtime, precision, plan.flops, world.device, ahead)
    return Execution(precision, micro_rows, is_compiled, why_not)


def open_session(
    model: MiniLLM | None,
    model_config: ModelConfig,
    config: TrainConfig,
    seed: int,
    runtime: Runtime,
    world: World,
    execution: Execution,
    loader: Loader,
    loss: Loss,
    skipped: SkippedBatches,
    identity: dict,
) -> Session:
    """The model on its device, its optimizers and its step.

    Args:
        model: None for a new one, whose first weights the seed gives, the same on every rank.
    """
    if model is None:
        torch.manual_seed(seed)
        model = MiniLLM(model_config)
    model = model.to(world.device).train()
    model.recompute = runtime.recompute
    model.block_masks = execution.compiled and world.device.type == "cuda" and model_config.head_dim >= 16
    parallel = Parallel(model, world, runtime.parallel, loss, execution.precision)
    scaler = torch.amp.GradScaler(world.device.type, enabled=execution.precision == torch.float16)
    if execution.compiled and compiles_ahead(world, runtime, execution.precision, loss):
        backward = Library(parallel.module, autocast_of(world, execution), state_dir() / "compile")
    else:
        backward = Backward(forward_of(parallel, world, execution), scaler)
    step = TrainStep(config, seed, world, loader, loss, skipped, parallel, backward, execution.micro_rows)
    optimizers = Optimizers(model, config, execution.precision)
    return Session(TrainState(model, optimizers, scaler, identity), step, parallel)


def autocast_of(world: World, execution: Execution) -> torch.autocast:
    """The context of a forward pass."""
    return torch.autocast(world.device.type, execution.precision, enabled=execution.precision != torch.float32)


def forward_of(parallel: Parallel, world: World, execution: Execution) -> Callable[..., tuple[Tensor, Tensor]]:
    """The loss of a batch (what is minimised, what is reported): under autocast, compiled as the run needs."""
    autocast = autocast_of(world, execution)

    def forward(*batch: Tensor | None) -> tuple[Tensor, Tensor]:
        with autocast:
            return parallel.module(*batch)

    return compiled(forward, world.device) if execution.compiled else forward


def log_setup(fingerprint: str, plan: Plan, runtime: Runtime, world: World, execution: Execution) -> None:
    """Logs what was derived before anything runs (law 9)."""
    log = get_logger()
    for line in plan.lines():
        log.info("%s", line)
    how = f"{world.size} x {world.device.type}, {execution.precision_name}"
    why = precision_reason(runtime, execution.precision, world.device)
    compiling = "compiled" if execution.compiled else f"not compiled ({execution.why_not})"
    log.info("run %s on %s (%s), %d threads, %s", fingerprint, how, why, torch.get_num_threads(), compiling)
    log.info("memory allocator: %s", allocator())
