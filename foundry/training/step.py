"""One optimizer step: batch, losses of its micro-batches, gradients, update."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from foundry.config import TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.models.loss import wide
from foundry.training.parallel import Parallel, clip_gradients
from foundry.training.passed import Passed
from foundry.training.state import TrainState
from foundry.utils.distributed import World
from foundry.utils.log import get_logger
from foundry.utils.splitmix import step_seed


class NotFinite(Exception):
    """A loss or gradient norm that is not finite; nothing was changed by it."""


class TrainStep:
    """What a training does in each step.

    Args:
        loss_of: (tokens, targets, segments) → (what is minimised, nats), summed over a micro-batch.
        micro_rows: sequences of a micro-batch.
    """

    def __init__(
        self,
        config: TrainConfig,
        seed: int,
        world: World,
        loader: DataLoader,
        passed: Passed,
        parallel: Parallel,
        loss_of: Callable[..., tuple[Tensor, Tensor]],
        micro_rows: int,
    ) -> None:
        self.config, self.seed, self.world, self.loader, self.passed = config, seed, world, loader, passed
        self.parallel, self.loss_of, self.micro_rows = parallel, loss_of, micro_rows

    def __call__(self, state: TrainState) -> tuple[float, float, float]:
        """One optimizer step: (loss in nats per token, gradient norm, learning-rate factor).

        Raises:
            NotFinite: before anything was changed.
        """
        batch = self.passed.batch(state.step)
        tokens, targets = (t.to(self.world.device) for t in self.loader.batch(batch))
        segments = self.loader.batch_documents(batch)[0].to(self.world.device) if self.config.document_mask else None
        torch.manual_seed(step_seed(self.seed, state.step, self.world.rank))
        valid = self.world.sum((targets >= 0).sum())
        factor = state.optimizers.set_lr(state.step)
        state.optimizers.zero_grad()
        total = torch.zeros((), device=self.world.device, dtype=wide(self.world.device))
        parts = [t.split(self.micro_rows) if t is not None else None for t in (tokens, targets, segments)]
        n = len(parts[0])
        for i in range(n):
            with self.parallel.accumulating(i == n - 1):
                loss, nats = self.loss_of(*(p[i] if p else None for p in parts))
                state.scaler.scale(loss * (self.parallel.gradient_scale / valid)).backward()
            total += nats.detach()
        mean = (self.world.sum(total) / valid).item()
        if not math.isfinite(mean):
            raise NotFinite(f"the loss is {mean}")
        state.scaler.unscale_(state.optimizers)
        norm = clip_gradients([p for p in state.model.parameters() if p.requires_grad], self.config.grad_clip)
        if math.isfinite(norm):
            state.scaler.step(state.optimizers)
            state.scaler.update()
        elif not _lowered(state.scaler):
            raise NotFinite(f"the gradient's norm is {norm} (loss {mean:.4f})")
        elif self.world.main:
            where, scale = f"step {state.step + 1}", state.scaler.get_scale()
            get_logger().info(
                "%s: the gradient left float16's range; no weight was changed, loss scale now %g", where, scale
            )
        return mean, norm, factor


def _lowered(scaler: torch.amp.GradScaler) -> bool:
    """Lowers the scale of the loss after gradients that are not finite; False, with the scale as it was, if the scale is not the cause.

    It is not without a scaler, nor at a scale of 1, where the gradient itself is out of float16's range.
    """
    scale = scaler.get_scale()
    scaler.update()
    if 1 <= scaler.get_scale() < scale:
        return True
    scaler.update(scale)
    return False
