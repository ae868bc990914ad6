"""Every millisecond of a training step.

    python -m benchmarks.step [--size laptop S M L] [--steps 30]

The first table divides the wall clock of the project's own step: each part is timed where the step calls it, and what
is left is the step's own Python. Validations, checkpoints and callbacks are measured as in a run and divided by the
steps between them. The second table divides the forward and backward pass by what torch's profiler sees: the kinds of
kernels, one line each, and the time in which no kernel runs. Both are medians; compiling and the first steps are not
in them. Shares of the peak are of the largest product of matrices measured in the same process.
"""

from __future__ import annotations

import argparse
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

from benchmarks.throughput import SIZES, config, make_data
from foundry.models.accounting import train_flops_per_token
from foundry.training import Trainer
from foundry.training import step as step_module
from foundry.training.numerics import numerics
from foundry.training.setup import Session
from foundry.utils.allocator import keep_memory
from foundry.utils.device import peak_flops

KINDS = {  # of the kernels in the forward and backward pass: the first kind whose word is in the kernel's name
    "products of matrices": ("mm", "linear", "matmul", "_mkl", "mkldnn"),
    "attention": ("attention", "flash"),
    "fused by the compiler": ("fused",),
    "embedding": ("embedding", "index", "gather", "scatter"),
    "softmax of the head": ("exp", "logsumexp", "softmax", "log", "amax", "max"),
    "conversions and copies": ("copy", "_to", "clone", "cat", "contiguous", "zero_", "fill_"),
}


class Clock:
    """Seconds of the parts of a step, by name; one list entry per step."""

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

    def step_done(self) -> None:
        for name, seconds in self._now.items():
            self.steps[name].append(seconds)
        self._now.clear()

    def median(self, name: str) -> float:
        return statistics.median(self.steps[name])


def parts_of(session: Session, clock: Clock, steps: int) -> None:
    """Does steps whose parts are timed: loader, forward, backward, clipping, each optimizer."""
    step, state = session.step, session.state
    step.loader.tensors = clock.timed("loader", step.loader.tensors)
    step.forward = clock.timed("forward and loss", step.forward)
    for optimizer in state.optimizers:
        optimizer.step = clock.timed(type(optimizer).__name__, optimizer.step)
    backward = clock.timed("backward", torch.Tensor.backward)
    clip = clock.timed("norm and clipping", step_module.clip_gradients)
    with patch.object(torch.Tensor, "backward", backward), patch.object(step_module, "clip_gradients", clip):
        for number in range(3 + steps):
            with clock.part("whole step"):
                step(state)
            state.step += 1
            if number >= 3:
                clock.step_done()
            else:
                clock._now.clear()


def kernels_of(session: Session, steps: int) -> dict[str, float]:
    """Seconds per step of each kind of kernel in forward and backward passes, as torch's profiler sees them."""
    found: dict[str, float] = defaultdict(float)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            session.step(session.state)
            session.state.step += 1
    for event in profiler.key_averages():
        name = event.key.lower()
        kind = next((k for k, words in KINDS.items() if any(w in name for w in words)), "everything else")
        found[kind] += event.self_cpu_time_total / 1e6 / steps
    return found
