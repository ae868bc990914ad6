"""What a run does when a loss or gradient is not finite: halt, skip the batch, or roll back."""

from __future__ import annotations

from collections.abc import Callable

from foundry.config import FoundryError, TrainConfig
from foundry.models.facts import SkipDecision
from foundry.training.checkpoints import Checkpoints
from foundry.training.protocols import Loader
from foundry.training.skipped import SkippedBatches
from foundry.training.state import TrainState
from foundry.utils.distributed import World
from foundry.utils.log import get_logger

MOST_SKIPPED = 0.05  # share of the steps that may be skipped before a run is given up


class Recovery:
    """The policy `train.on_nonfinite` of one run, the same on every rank.

    Args:
        load: puts the newest checkpoint of at most so many steps into the state.
    """

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        loader: Loader,
        skipped: SkippedBatches,
        checkpoints: Checkpoints,
        load: Callable[[TrainState, int], None],
    ) -> None:
        self.config, self.world, self.loader = config, world, loader
        self.skipped, self.checkpoints, self.load = skipped, checkpoints, load

    def __call__(self, state: TrainState, what: str, rolled_back: Callable[[], None]) -> None:
        """Answers a step that was not finite, before anything was changed by it.

        Args:
            what: which value was not finite.
            rolled_back: called once the state is that of an earlier step.

        Raises:
            FoundryError: if the policy is to halt, or too many batches were skipped before.
            CheckpointError: if there is no checkpoint to roll back to.
        """
        cfg, step = self.config, state.step
        read = self.loader.describe(self.skipped.batch(step))
        where = f"step {step + 1}: {what}; {read} (`foundry inspect --step {step + 1}` prints them)"
        if cfg.on_nonfinite == "halt" or len(self.skipped) > max(cfg.rollback_steps, MOST_SKIPPED * cfg.steps):
            more = f" {len(self.skipped)} batches were skipped before." if len(self.skipped) else ""
            raise FoundryError(
                f"{where}. The weights are as they were before this step.{more} Lower train.lr or train.matrix_lr, "
                "raise train.warmup_steps, set runtime.precision: float32, or set train.on_nonfinite: skip or rollback"
            )
        first = step if cfg.on_nonfinite == "skip" else max(0, step - cfg.rollback_steps + 1)
        window = [self.skipped.batch(s) for s in range(first, step + 1)]
        if cfg.on_nonfinite == "rollback":
            self.checkpoints.wait()
            if self.world.main:
                self.checkpoints.remove_after(first)
            self.world.barrier()
            self.load(state, first)
            rolled_back()  # before the decision is recorded: a kill between them repeats this, and misses nothing
        self.skipped.add(SkipDecision(step=step, reason=what, batches=window), write=self.world.main)
        self.world.barrier()
        if self.world.main:
            back = f"; rolled back to step {state.step}" if cfg.on_nonfinite == "rollback" else ""
            get_logger().warning("%s. Skipped: %s%s", where, ", ".join(map(str, window)), back)
