"""Where a run resumes: its folder, its newest good checkpoint, or that of a shorter run of the same recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from foundry.config import CheckpointError, FoundryError, TrainConfig
from foundry.training.checkpoints import Checkpoints
from foundry.training.identity import check_same, extends
from foundry.training.numerics import variables
from foundry.training.schedule import stable_steps
from foundry.training.skipped import FORMER, SKIPPED
from foundry.training.state import TrainState
from foundry.utils.distributed import World
from foundry.utils.files import read_json, write_json
from foundry.utils.log import get_logger


class RunFolder:
    """The folder of one run's state.

    Args:
        path: named by the fingerprint, among those of other runs.
        identity: what makes this run this one (law 1).
    """

    def __init__(
        self, path: Path, identity: dict[str, Any], config: TrainConfig, world: World, checkpoints: Checkpoints
    ) -> None:
        self.path, self.identity, self.config, self.world, self.checkpoints = path, identity, config, world, checkpoints

    def record(self, environment: dict[str, Any]) -> None:
        """Records the identity and the environment of the run; warns if the run was started in another environment.

        Raises:
            CheckpointError: if the folder is of another run.
        """
        path = self.path / "identity.json"
        if path.exists():
            check_same(read_json(path, "identity of a run"), self.identity, str(self.path))
        else:
            write_json(path, self.identity)
        path = self.path / "environment.json"
        if path.exists() and (old := read_json(path, "environment of a run")) != environment:
            changed = ", ".join(
                f"{k} {old.get(k)} → {environment[k]}" for k in environment if old.get(k) != environment[k]
            )
            get_logger().warning(
                "the run was started with other execution settings (%s): it resumes, but not with the same last bits",
                changed,
            )
        elif not path.exists():
            write_json(path, environment)
            if found := ", ".join(f"{k}={v}" for k, v in variables().items() if v is not None):
                get_logger().warning("the environment sets %s: without it the result has other last bits", found)

    def load(self, state: TrainState, at_most: int | None = None) -> None:
        """Puts the newest good checkpoint (of at most `at_most` steps) into the state; without one, it stays as it is.

        Raises:
            CheckpointError: if there is none of at most `at_most` steps.
        """
        found = self.checkpoints.load_newest(at_most, state.wanted)
        if found is None and at_most is not None:
            raise CheckpointError(
                f"there is no good checkpoint of step {at_most} or earlier in {self.checkpoints.folder} to roll back "
                "to: run the same command again, which resumes from what is left, or set train.on_nonfinite: skip"
            )
        if found is None:
            found = self._shorter_run(state)
        if found:
            tensors, values = found
            check_same(extends(values["identity"], self.identity), self.identity, "the checkpoint")
            state.load_state_dict(tensors, {**values, "identity": self.identity})
            if self.world.main:
                get_logger().info("resumes from the checkpoint of step %d", state.step)
        elif self.world.main:
            get_logger().info("training starts from scratch")

    def _shorter_run(self, state: TrainState) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A checkpoint of another run that is the same so far: the stable part of the same recipe with other `steps`.

        The folder belongs to that run: what is damaged there, or was just removed, is skipped with a warning.
        """
        for step, folder in self.world.share(self.shorter_runs() if self.world.main else None):
            found, why = Checkpoints(folder / "checkpoints", 1, world=self.world).read(step, state.wanted)
            if self.world.main and found:
                get_logger().info("run %s is the same run up to step %d", folder.name, step)
            elif self.world.main:
                get_logger().warning("the checkpoint of step %d of run %s is not used: %s", step, folder.name, why)
            if found:
                return found
        return None

    def shorter_runs(self) -> list[tuple[int, Path]]:
        """(step, folder of its run) of all checkpoints that this run could begin from, the newest first."""
        mine, found = stable_steps(self.config), []
        for path in self.path.parent.glob("*/identity.json"):
            if path.parent == self.path or any((path.parent / name).exists() for name in (SKIPPED, FORMER)):
                continue
            try:
                other = read_json(path, "identity of a run")
            except (FoundryError, OSError) as e:
                get_logger().warning("another run is skipped: %s", e)
                continue
            if not isinstance(other, dict) or extends(other, self.identity) != self.identity:
                continue
            lengths = {"steps": other["train.steps"], "decay_fraction": other["train.decay_fraction"]}
            most = min(mine, stable_steps(self.config.model_copy(update=lengths)))
            found += [(s, path.parent) for s in Checkpoints(path.parent / "checkpoints", 1).steps() if s <= most]
        return sorted(found, key=lambda c: (-c[0], c[1].name))
