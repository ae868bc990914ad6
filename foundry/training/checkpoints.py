"""The checkpoints of one run: newest whole one wins, a damaged one is told and passed over, old ones are removed last."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from torch import Tensor

from foundry.config import CheckpointError
from foundry.utils.checkpoint import load_checkpoint, save_checkpoint
from foundry.utils.log import get_logger


class Checkpoints:
    """Folders `step-NNNNNNNN` under one run's state folder.

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; names without a marker are not counted."""
        return sorted(int(p.parent.name.removeprefix("step-")) for p in self.folder.glob("step-*/checkpoint.json"))

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> Path:
        path = save_checkpoint(self._path(step), tensors, values)
        for old in self.steps()[: -self.keep]:
            shutil.rmtree(self._path(old))
        for rest in self.folder.glob(".step-*.tmp"):  # of a save that was killed
            shutil.rmtree(rest)
        return path

    def load_newest(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint whose hashes hold; None if there is none at all.

        Raises:
            CheckpointError: if there are checkpoints, but every one is damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            try:
                return load_checkpoint(self._path(step))
            except CheckpointError as e:
                get_logger().warning("checkpoint of step %d passed over: %s", step, e)
                damaged.append(str(e))
        if damaged:
            raise CheckpointError(
                "every checkpoint is damaged:\n  - " + "\n  - ".join(damaged) + f"\nDelete {self.folder} to start anew"
            )
        return None

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"
