"""Every millisecond of a training step.

    python -m benchmarks.step [--size laptop S M L] [--steps 20] [--compile auto|always|never]

The first table divides the time of the project's own step, as the trainer runs it: each part is timed where the step
calls it, and the rest is the step's own Python. The callbacks of every run are timed beside it; a validation and a
checkpoint are divided by the steps between two of them in the default recipe. All figures are medians over the steps,
without the first ones and without compiling. The second table divides the forward and the backward pass among the
kernels that torch's profiler sees, which is possible only where torch.compile compiled them: the same kernels as in the
library of a run on one CPU (`foundry.training.ahead`), called in another way.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.rounds import machine
from benchmarks.throughput import SIZES, config, make_data
from foundry.models.accounting import train_flops_per_token
from foundry.training import Trainer
from foundry.training import step as step_module
from foundry.training.callbacks import LogLines, ProgressBar
from foundry.training.numerics import numerics
from foundry.training.observer import Observer
from foundry.training.setup import Session, forward_of
from foundry.training.step import Backward
from foundry.utils.allocator import keep_memory
from foundry.utils.device import peak_flops

FIRST = 4  # steps that are not measured
OPTIMIZERS = {"Muon", "AdamW"}
# Kernels of the forward and backward pass. A kernel belongs to the first kind of which its name contains a word.
KINDS = {
    "fused attention": ("scaled_dot_product",),
    "fused: softmax and loss of the head": ("logsumexp", "scatter"),
    "fused: SwiGLU": ("fused", "silu"),
    "fused: rotary embedding": ("fused", "cat"),
    "fused: norms": ("fused", "rsqrt"),
    "fused: softmax of attention": ("fused", "softmax"),
    "fused: everything else": ("fused",),
    "embedding": ("index",),
}


class Clock:
    """Seconds of the parts of a step, by name: one entry per step."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = defaultdict(list)
        self._now: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._now[name] += time.perf_counter() - begin

    def timed(self, name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call

    def step_done(self, measured: bool) -> None:
        for name, seconds in self._now.items():
            if measured:
                self.steps[name].append(seconds)
        self._now.clear()

    def median(self, name: str) -> float:
        return statistics.median(self.steps[name])


def time_parts(session: Session, observer: Observer, clock: Clock, steps: int) -> None:
    """Runs steps and times the loader, the passes, clipping, each optimizer, and the callbacks."""
    step, state = session.step, session.state
    step.loader.tensors = clock.timed("loader", step.loader.tensors)
    step.backward = clock.timed("forward and backward pass", step.backward)
    for optimizer in state.optimizers:
        optimizer.step = clock.timed(type(optimizer).__name__, optimizer.step)
    norm = clock.timed("gradient norm", step_module.gradient_norm)
    clip = clock.timed("clipping", step_module.clip_gradients)
    with patch.object(step_module, "gradient_norm", norm), patch.object(step_module, "clip_gradients", clip):
        for number in range(FIRST + steps):
            with clock.part("step"):
                loss, norm, factor = step(state)
            state.step += 1
            with clock.part("callbacks"):
                observer.step(loss, norm, step.config.lr * factor, last=False)
            clock.step_done(measured=number >= FIRST)


def time_kernels(session: Session, trainer: Trainer, steps: int) -> dict[str, float]:
    """Seconds per step of each kind of kernel, the optimizers' left out."""
    step, state = session.step, session.state
    for optimizer in state.optimizers:
        optimizer.step = lambda: None
    step.backward = Backward(forward_of(session.parallel, trainer.world, trainer.execution), state.scaler)
    for _ in range(FIRST):
        step(state)
    found: dict[str, float] = defaultdict(float)
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        for _ in range(steps):
            step(state)
            state.step += 1
    for event in profiler.key_averages(group_by_input_shape=True):
        kind = kind_of(event.key, event.input_shapes, trainer.model_config.vocab_size)
        found[kind] += event.self_cpu_time_total / 1e6 / steps
    return found


def kind_of(name: str, shapes: list, vocab_size: int) -> str:
    """What a kernel is for, by its name and the shapes that it gets."""
    if name in ("aten::mm", "aten::addmm"):
        return "products of the head" if any(vocab_size in shape for shape in shapes) else "products of the layers"
    if name in ("aten::bmm", "aten::baddbmm"):
        return "products of attention"
    for kind, words in KINDS.items():
        if all(word in name for word in words) or (kind.endswith("head") and any(word in name for word in words)):
            return kind
    return "everything else: Python, dispatch, copies"


def table(title: str, rows: dict[str, float], whole: float) -> None:
    """Prints rows of seconds as milliseconds and as shares of the whole, the largest first."""
    wide = max(len(title), *map(len, rows)) + 2
    print(f"\n{title:{wide}}{'ms':>9}{'share':>8}")
    for name, seconds in sorted(rows.items(), key=lambda row: -row[1]):
        print(f"{name:{wide}}{1e3 * seconds:9.2f}{seconds / whole:8.1%}")
    print(f"{'sum':{wide}}{1e3 * sum(rows.values()):9.2f}{sum(rows.values()) / whole:8.1%}", flush=True)


def measure(size: str, steps: int, compiling: str, data: Path) -> None:
    """Both tables of one size."""
    cfg = config(size)
    recipe = cfg.train
    runtime = cfg.runtime.model_copy(update={"compile": compiling})
    with tempfile.TemporaryDirectory() as state:
        trainer = Trainer.from_shards(cfg.model, recipe, data, runtime=runtime, state=Path(state))
        with numerics(trainer.runtime, trainer.world):
            session = trainer.session()
            peak = peak_flops(trainer.world.device, trainer.execution.precision)
            flops = train_flops_per_token(cfg.model)
            callbacks = [ProgressBar(recipe.steps, 0), LogLines()]
            observer = Observer(
                session.state,
                recipe,
                trainer.world,
                callbacks,
                flops_per_token=flops,
                bytes_per_token=4.0,
                peak_flops=peak,
            )
            clock = Clock()
            time_parts(session, observer, clock, steps)
            observer.end()
            trainer.validate(session)  # compiles
            with clock.part("validation"):
                trainer.validate(session)
            with clock.part("checkpoint"):
                trainer.save_checkpoint(Path(state) / "checkpoint")
            clock.step_done(measured=True)
            kernels = time_kernels(session, trainer, steps)
    step = clock.median("step")
    named = {name: clock.median(name) for name in clock.steps if name not in ("step", "validation", "checkpoint")}
    parts = {**named, "the step's own Python, copies of the batch": step + named["callbacks"] - sum(named.values())}
    parts["validation / steps between two"] = clock.median("validation") / recipe.eval_interval
    parts["checkpoint / steps between two"] = clock.median("checkpoint") / runtime.checkpoint_interval
    whole = sum(parts.values())
    tokens = recipe.tokens_per_step
    print(
        f"\n{size}: {tokens} tokens per step, {trainer.execution.precision_name}, "
        f"{'compiled' if trainer.execution.compiled else 'not compiled'}, {torch.get_num_threads()} threads; "
        f"{tokens / whole:,.0f} tokens/s, {tokens * flops / whole / peak:.0%} of the peak ({peak / 1e9:,.0f} GFLOP/s)"
    )
    table("parts of a step", parts, whole)
    optimizer = sum(parts.get(name, 0.0) for name in OPTIMIZERS)
    print(f"optimizers: {optimizer / whole:.1%} of a step")
    table("kernels of the passes, in the profiler", kernels, sum(kernels.values()))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--size", choices=SIZES, nargs="+", default=["laptop"])
    p.add_argument("--steps", type=int, default=20, help="measured steps of each table (default: %(default)s)")
    p.add_argument("--compile", choices=("auto", "always", "never"), default="auto")
    args = p.parse_args()
    # Names the compiler's kernels in the profile, which changes nothing else of them.
    os.environ["TORCHINDUCTOR_CPP_ENABLE_KERNEL_PROFILE"] = "1"
    keep_memory()
    print(machine())
    with tempfile.TemporaryDirectory() as folder:
        make_data(config("laptop"), Path(folder))
        for size in args.size:
            measure(size, args.steps, args.compile, Path(folder) / "shards")


if __name__ == "__main__":
    main()
