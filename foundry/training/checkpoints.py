"""The checkpoints of one run: newest whole one wins, a damaged one is told and passed over, old ones are removed last.

A thread writes them: the loop waits for the copy of the state to host memory, and for the checkpoint before if that is still being
written. An error of the thread (a full disk) is raised by the next call.
"""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

from torch import Tensor

from foundry.config import CheckpointError
from foundry.utils.checkpoint import load_checkpoint, save_checkpoint, verify_checkpoint
from foundry.utils.log import get_logger


class Checkpoints:
    """Folders `step-NNNNNNNN` under one run's state folder.

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many of the newest stay, beside those in `pinned`.
        pinned: steps whose checkpoints are never removed.
    """

    def __init__(self, folder: Path, keep: int, pinned: frozenset[int] = frozenset()) -> None:
        self.folder, self.keep, self.pinned = folder, keep, pinned
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending; names without a marker are not counted."""
        return sorted(int(p.parent.name.removeprefix("step-")) for p in self.folder.glob("step-*/checkpoint.json"))

    def save(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Begins to write a checkpoint; the tensors must not change any more.

        Raises:
            FoundryError: if the checkpoint before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(target=self._write, args=(step, tensors, values), name="checkpoint")
        self._thread.start()

    def wait(self) -> None:
        """Returns when nothing is being written any more.

        Raises:
            FoundryError: if the checkpoint could not be written; the ones before it are as they were.
        """
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._error:
            error, self._error = self._error, None
            raise error

    def _write(self, step: int, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        try:
            save_checkpoint(self._path(step), tensors, values)
            self._remove_old()
        except BaseException as e:
            self._error = e

    def _remove_old(self) -> None:
        """Removes what need not stay, once the newest one was read back and holds."""
        for rest in self.folder.glob(".step-*.tmp"):  # of a save that was killed
            shutil.rmtree(rest)
        steps = self.steps()
        old = [s for s in steps[: -self.keep] if s not in self.pinned]
        if not old:
            return
        verify_checkpoint(self._path(steps[-1]))
        for s in old:
            shutil.rmtree(self._path(s))

    def load_newest(self, before: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest checkpoint whose hashes hold; None if there is none at all.

        Args:
            before: only those of at most so many steps.

        Raises:
            CheckpointError: if there are checkpoints, but every one is damaged.
        """
        damaged = []
        for step in reversed(self.steps()):
            if before is not None and step > before:
                continue
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

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of more than so many steps."""
        self.wait()
        for s in self.steps():
            if s > step:
                shutil.rmtree(self._path(s))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"
