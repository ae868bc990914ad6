"""One optimizer step: batch, losses of its micro-batches, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from foundry.config import TrainConfig
from foundry.models.loss import sum_dtype
from foundry.training.parallel import Parallel, clip_gradients, gradient_norm
from foundry.training.prefetch import Batches
from foundry.training.protocols import Loader, Loss
from foundry.training.skipped import SkippedBatches
from foundry.training.state import TrainState
from foundry.utils.distributed import World
from foundry.utils.log import get_logger
from foundry.utils.splitmix import step_seed


class NotFinite(Exception):
    """A loss or gradient norm that is not finite; nothing was changed by it."""


class Backward:
    """Adds the gradients of a micro-batch to those of the parameters, by autograd.

    Args:
        forward: the loss through `parallel`: (*batch) → (what is minimised, what is reported).
    """

    def __init__(self, forward: Callable[..., tuple[Tensor, Tensor]], scaler: torch.amp.GradScaler) -> None:
        self.forward, self.scaler = forward, scaler

    def __call__(self, factor: Tensor, *batch: Tensor | None) -> Tensor:
        """
        Args:
            factor: of the gradients.

        Returns:
            what is reported of the loss, without the factor.
        """
        loss, reported = self.forward(*batch)
        self.scaler.scale(loss * factor).backward()
        return reported.detach()


class TrainStep:
    """What a training does in each step.

    Args:
        loader, loss: see `protocols`.
        skipped: decides which batch a step reads.
        backward: adds the gradients of a micro-batch: (their factor, *batch) → what is reported of the loss.
        micro_rows: sequences of a micro-batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        world: World,
        loader: Loader,
        loss: Loss,
        skipped: SkippedBatches,
        parallel: Parallel,
        backward: Callable[..., Tensor],
        micro_rows: int,
    ) -> None:
        self.config, self.seed, self.world, self.loader, self.loss = config, seed, world, loader, loss
        self.skipped, self.parallel, self.backward, self.micro_rows = skipped, parallel, backward, micro_rows
        self.batches = Batches(loader, world.device, config.document_mask)

    def __call__(self, state: TrainState) -> tuple[float, float, float]:
        """One optimizer step: (loss in nats per token, gradient norm, learning-rate factor).

        The caller counts the step. A batch without a term changes nothing; its loss and norm are 0.

        Raises:
            NotFinite: before anything was changed.
        """
        batch = self.batches.take(self.skipped.batch(state.step))
        torch.manual_seed(step_seed(self.seed, state.step, self.world.rank))
        valid = self.world.sum(self.loss.count(*batch))
        factor = state.optimizers.set_lr(state.step)
        state.optimizers.zero_grad()
        total = torch.zeros((), device=self.world.device, dtype=sum_dtype(self.world.device))
        parts = [t if t is None else t.split(self.micro_rows) for t in batch]
        n = len(parts[0])
        for i in range(n):
            with self.parallel.accumulating(i == n - 1):
                total += self.backward(self.parallel.gradient_scale / valid, *(p if p is None else p[i] for p in parts))
        if state.step + 1 < self.config.steps:
            self.batches.prepare(self.skipped.batch(state.step + 1))
        state.scaler.unscale_(state.optimizers)
        grads = [p.grad for p in state.model.parameters() if p.grad is not None]
        # The only place where the host waits for the device: for the three numbers at once.
        numbers = (self.world.sum(total) / valid, gradient_norm(grads).to(total.dtype), valid.to(total.dtype))
        mean, norm, terms = torch.stack(numbers).tolist()
        if not terms:  # even a gradient of 0 would move the weights: by momentum, and by their decay
            _forget(state.scaler)
            return 0.0, 0.0, factor
        if not math.isfinite(mean):
            _forget(state.scaler)
            raise NotFinite(f"the loss is {mean}")
        if math.isfinite(norm):
            clip_gradients(grads, norm, self.config.grad_clip)
            state.optimizers.step()  # what the scaler would do after another look at the gradients
            state.scaler.update()
        elif not _lowered(state.scaler):
            raise NotFinite(f"the gradient's norm is {norm} (loss {mean:.4f})")
        elif self.world.main:
            where, scale = f"step {state.step + 1}", state.scaler.get_scale()
            get_logger().info(
                "%s: the gradient overflowed float16; the weights are unchanged, the loss scale is now %g", where, scale
            )
        return mean, norm, factor


def _lowered(scaler: torch.amp.GradScaler) -> bool:
    """Lowers the scale of the loss after gradients that are not finite; whether the scale was the cause.

    It is not the cause without a scaler, nor at a scale of 1, where the gradient itself is out of float16's range; the
    scale then stays as it was.
    """
    scale = scaler.get_scale()
    scaler.update()
    if 1 <= scaler.get_scale() < scale:
        return True
    scaler.update(scale)
    return False


def _forget(scaler: torch.amp.GradScaler) -> None:
    """The scaler forgets gradients that are not used; its scale stays as it was."""
    scaler.update(scaler.get_scale())
