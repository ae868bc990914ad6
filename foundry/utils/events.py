"""What happens in a training, as typed events, and the callbacks that receive them.

MLflow, TensorBoard, the progress bar and the log lines are callbacks. Only rank 0 has any; a callback does not change
the run (law 8) and must not raise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepDone:
    """One optimizer step.

    Attributes:
        step: number of optimizer steps done.
        loss: nats per token.
        bits_per_byte: the loss per byte of the training text (approximately, if sources are weighted).
        seconds: wall-clock time of training so far, over all resumes.
        share_of_peak: share of the device's peak in operations per second; None if the peak is unknown.
        deviations: if the loss is a spike, the number of standard deviations above the last losses; else None.
        logged: whether the step is a point of the loss curve.
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    tokens_per_second: float
    gflops: float
    seconds: float
    bits_per_byte: float
    share_of_peak: float | None
    deviations: float | None
    logged: bool

    def metrics(self) -> dict[str, float]:
        """The finite numbers by name; the norm of a gradient that overflowed float16 is left out."""
        names = ("loss", "grad_norm", "lr", "tokens_per_second", "gflops", "seconds", "bits_per_byte", "share_of_peak")
        values = {name: getattr(self, name) for name in names}
        return {k: v for k, v in values.items() if v is not None and math.isfinite(v)}


@dataclass(frozen=True)
class Validated:
    """A validation of the weights after `step` steps."""

    step: int
    metrics: dict[str, float]


@dataclass(frozen=True)
class CheckpointSaved:
    """The write of a checkpoint has begun; training waited `seconds` for the copy of the state."""

    step: int
    seconds: float


@dataclass(frozen=True)
class RolledBack:
    """Training returned to `step` and continues with other batches; what was reported of later steps is void."""

    step: int


class Callback:
    """Receives the events of one training; methods that are not overridden do nothing."""

    def on_step(self, event: StepDone) -> None:
        pass

    def on_validation(self, event: Validated) -> None:
        pass

    def on_checkpoint(self, event: CheckpointSaved) -> None:
        pass

    def on_rollback(self, event: RolledBack) -> None:
        pass

    def on_end(self) -> None:
        """The loop has ended: finished, stopped, or with an error."""


class MetricsCallback(Callback):
    """A callback that records numbers by step: those of each point of the loss curve and of each validation."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        raise NotImplementedError

    def back_to(self, step: int) -> None:
        """Discards what was logged of later steps."""
        raise NotImplementedError

    def on_step(self, event: StepDone) -> None:
        if event.logged:
            self.log(event.step, event.metrics())

    def on_validation(self, event: Validated) -> None:
        self.log(event.step, {k: v for k, v in event.metrics.items() if math.isfinite(v)})

    def on_rollback(self, event: RolledBack) -> None:
        self.back_to(event.step)
