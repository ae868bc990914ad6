"""The checkpoints of one run: the newest good one is used, damaged ones are set aside, old ones are removed last.

A thread writes them: the loop waits only for the copy of the state to host memory, and for the previous checkpoint if
that is still being written. An error of the thread (a full disk) is raised by the next call. A damaged checkpoint never
stops a run: it is moved to `checkpoints/damaged/` with a warning, and the one before it is used.

Where FSDP divides the state, every process writes and reads its own part, and no process ever has the whole state. All
processes need the same file system. They agree over a gloo group that only this thread uses, so that the collectives of
the loop are not disturbed.
"""

from __future__ import annotations

import re
import shutil
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from foundry.config import CheckpointError
from foundry.utils.checkpoint import (
    Box,
    WantedPart,
    read_checkpoint,
    total_bytes,
    verify_checkpoint,
    write_marker,
    write_part,
)
from foundry.utils.distributed import World
from foundry.utils.files import atomic_dir, remove_dir
from foundry.utils.log import get_logger

T = TypeVar("T")


class Writers:
    """The processes that write one checkpoint together.

    Args:
        world: this process among its peers.
        divided: whether every process has a part of the state; else the main process writes everything.
    """

    def __init__(self, world: World, divided: bool) -> None:
        self.rank, self.size, self._group = 0, 1, None
        if divided and world.size > 1:
            import torch.distributed as dist

            self.rank, self.size, self._group = world.rank, world.size, dist.new_group(backend="gloo")

    def together(self, work: Callable[[], T]) -> list[T]:
        """The results of every process's work, in the order of the ranks.

        Raises:
            Exception: this process's own.
            CheckpointError: if the work failed on another process.
        """
        if self.size == 1:
            return [work()]
        import torch.distributed as dist

        result, error = None, None
        try:
            result = work()
        except Exception as e:
            error = e
        answers: list[Any] = [None] * self.size
        dist.all_gather_object(answers, (result, error and f"{type(error).__name__}: {error}"), group=self._group)
        if error:
            raise error
        for rank, (_, why) in enumerate(answers):
            if why:
                raise CheckpointError(f"training process {rank} could not write its part of a checkpoint: {why}")
        return [value for value, _ in answers]

    def main(self, work: Callable[[], T]) -> T | None:
        """The main process's result, on every process; the work runs only there."""
        return self.together(lambda: work() if self.rank == 0 else None)[0]

    def save(self, path: Path, tensors: dict[str, Tensor], boxes: dict[str, Box], values: dict[str, Any]) -> list[str]:
        """Writes a checkpoint, which appears under its name when the parts of all processes are complete.

        Returns:
            the names of this process's files.

        Raises:
            DiskError: if the disk takes no more.
            CheckpointError: if another process could not write its part.
        """
        with ExitStack() as stack:
            room = total_bytes(tensors, boxes)
            folder = Path(self.main(lambda: str(stack.enter_context(atomic_dir(path, needed=room)))))
            contents = self.together(lambda: write_part(folder, self.rank, tensors, boxes))
            self.main(lambda: write_marker(folder, contents, values))
            self.main(stack.close)
        return list(contents[self.rank].files)


class Checkpoints:
    """Folders `step-NNNNNNNN` under one run's state folder.

    Args:
        folder: made when the first checkpoint is saved.
        keep: how many of the newest stay, beside those in `pinned`.
        pinned: steps whose checkpoints are never removed.
        world: this process among its peers; None if it is the only one.
        divided: whether every process has a part of the state.
    """

    def __init__(
        self,
        folder: Path,
        keep: int,
        pinned: frozenset[int] = frozenset(),
        world: World | None = None,
        divided: bool = False,
    ) -> None:
        import torch

        self.folder, self.keep, self.pinned = folder, keep, pinned
        self.world = world or World(0, 1, torch.device("cpu"))
        self.writers = Writers(self.world, divided)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, ascending, damaged ones included."""
        names = (re.fullmatch(r"step-(\d{8,})", p.name) for p in self.folder.glob("step-*/"))
        return sorted(int(m[1]) for m in names if m)

    def save(
        self,
        step: int,
        tensors: dict[str, Tensor],
        values: dict[str, Any],
        boxes: dict[str, Box] | None = None,
    ) -> None:
        """Begins to write a checkpoint. The tensors must not change any more.

        Where the state is divided, every process must call it.

        Args:
            boxes: of each tensor that is a part, which part.

        Raises:
            FoundryError: if the checkpoint before could not be written.
        """
        self.wait()
        self._thread = threading.Thread(
            target=self._write, args=(step, tensors, boxes or {}, values), name="checkpoint"
        )
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

    def _write(self, step: int, tensors: dict[str, Tensor], boxes: dict[str, Box], values: dict[str, Any]) -> None:
        try:
            files = self.writers.save(self._path(step), tensors, boxes, values)
            damage = [d for d in self.writers.together(lambda: self._damage(step, files)) if d]
            self.writers.main(lambda: self._set_aside(step, damage[0]) if damage else self._remove_old())
        except BaseException as e:
            self._error = e

    def _damage(self, step: int, files: list[str]) -> str | None:
        """What is wrong with this process's files of a checkpoint as they are read back; None if they are good."""
        try:
            verify_checkpoint(self._path(step), files)
        except CheckpointError as e:
            return str(e)
        return None

    def _remove_old(self) -> None:
        """Removes what need not stay, once the checkpoint just written was read back and is good."""
        for rest in self.folder.glob(".step-*.tmp"):  # of a save or a removal that was killed
            shutil.rmtree(rest)
        for s in self.steps()[: -self.keep]:
            if s not in self.pinned:
                remove_dir(self._path(s))

    def _set_aside(self, step: int, why: str) -> None:
        path, to = self._path(step), self.folder / "damaged" / self._path(step).name
        if not path.exists():
            return
        to.parent.mkdir(exist_ok=True)
        if to.exists():
            remove_dir(to)
        path.rename(to)
        get_logger().warning(
            "the checkpoint of step %d is damaged and was moved to %s, where nothing reads it: %s", step, to, why
        )

    def load_newest(
        self, at_most: int | None = None, wanted: WantedPart = lambda name, shape: None
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The newest good checkpoint, or None; damaged ones are set aside with a warning. Every process must call it.

        Args:
            at_most: only those of at most so many steps.
            wanted: of each tensor, the part that this process wants.
        """
        damaged = 0
        for step in self.world.share(self.steps())[::-1]:
            if at_most is not None and step > at_most:
                continue
            found, why = self.read(step, wanted)
            if found:
                return found
            damaged += 1
            if self.world.main:
                self._set_aside(step, why)
            self.world.barrier()
        if damaged and self.world.main:
            get_logger().warning("no checkpoint of this run can be used")
        return None

    def read(
        self, step: int, wanted: WantedPart = lambda name, shape: None
    ) -> tuple[tuple[dict[str, Tensor], dict[str, Any]] | None, str]:
        """(the checkpoint of a step, "") if it is good for every process, else (None, what is wrong)."""
        found, why = None, ""
        try:
            found = read_checkpoint(self._path(step), wanted)
        except CheckpointError as e:
            why = str(e)
        reasons = [w for w in self.world.gather(why) if w]
        return (None, reasons[0]) if reasons else (found, "")

    def remove_after(self, step: int) -> None:
        """Removes the checkpoints of more than so many steps."""
        self.wait()
        for s in self.steps():
            if s > step:
                remove_dir(self._path(s))

    def _path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"
