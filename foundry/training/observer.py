"""Measures the steps of a run, keeps its loss curve, and sends events to callbacks.

It changes nothing else of the run (law 8).
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from contextlib import ExitStack

from foundry.config import TrainConfig
from foundry.training.state import TrainState
from foundry.utils.distributed import World
from foundry.utils.events import Callback, CheckpointSaved, RolledBack, StepDone, Validated


class Observer:
    """Every rank keeps the curve; rank 0 has callbacks.

    Args:
        flops_per_token: floating-point operations of training on one token.
        bytes_per_token: of the training text; with weighted sources approximately.
        peak_flops: operations per second that the device can do at most; None if unknown.
    """

    def __init__(
        self,
        state: TrainState,
        config: TrainConfig,
        world: World,
        callbacks: Iterable[Callback] = (),
        *,
        flops_per_token: int,
        bytes_per_token: float,
        peak_flops: float | None,
    ) -> None:
        self.state, self.config = state, config
        self.callbacks = list(callbacks) if world.main else []
        self.flops, self.bytes_per_token, self.peak = flops_per_token, bytes_per_token, peak_flops
        self.pause()

    def pause(self) -> None:
        """The time since the last step was not training."""
        self._clock = time.perf_counter()

    def step(self, loss: float, norm: float, lr: float, last: bool) -> None:
        """Takes the numbers of the step that was just done."""
        state, cfg = self.state, self.config
        now = time.perf_counter()
        seconds, self._clock = now - self._clock, now
        state.seconds += seconds
        speed = cfg.tokens_per_step / seconds
        event = StepDone(
            step=state.step,
            loss=loss,
            grad_norm=norm,
            lr=lr,
            tokens_per_second=speed,
            gflops=speed * self.flops / 1e9,
            seconds=state.seconds,
            bits_per_byte=loss / math.log(2) / self.bytes_per_token,
            share_of_peak=None if self.peak is None else speed * self.flops / self.peak,
            deviations=state.watch(loss),
            logged=state.step == 1 or state.step % cfg.log_interval == 0 or last,
        )
        if event.logged:
            row = {"loss": loss, "grad_norm": norm, "lr": lr}
            state.curve.append({"step": state.step, "tokens": state.step * cfg.tokens_per_step, **_rounded(row)})
        for callback in self.callbacks:
            callback.on_step(event)

    def validation(self, metrics: dict[str, float]) -> None:
        """Takes a validation of the weights as they are now; empty on ranks that take no part."""
        if metrics:
            state, row = self.state, _rounded(metrics)
            state.validations.append({"step": state.step, "tokens": state.step * self.config.tokens_per_step, **row})
            for callback in self.callbacks:
                callback.on_validation(Validated(state.step, row))
        self.pause()

    def checkpoint(self, seconds: float) -> None:
        """A checkpoint was begun, for whose copy training waited so many seconds."""
        for callback in self.callbacks:
            callback.on_checkpoint(CheckpointSaved(self.state.step, seconds))
        self.pause()

    def rolled_back(self) -> None:
        """Training returned to the step that the state has now."""
        for callback in self.callbacks:
            callback.on_rollback(RolledBack(self.state.step))
        self.pause()

    def end(self) -> None:
        """Ends every callback once, also if another one fails."""
        with ExitStack() as stack:
            while self.callbacks:
                stack.callback(self.callbacks.pop().on_end)


def _rounded(numbers: dict[str, float]) -> dict[str, float]:
    return {k: float(f"{v:.6g}") for k, v in numbers.items()}
