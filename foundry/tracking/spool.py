"""Metrics on disk first: an append-only file that no network can slow down, and the mark of what was delivered.

A point is one line, written with one call and its original time; MLflow ignores a point that it has (same key, value, time, step), so delivering twice
changes nothing. A last line that a kill cut off is skipped. A trainer that resumes from a checkpoint repeats the steps since: their points are here
already and are not written again, so the steps of a metric only grow. Its times do too, when the clock is set back.

A rollback is the exception: training returns to a step and takes other batches from there. A line with `back` says so; the points of later steps before
it are void: they are not delivered any more, and the steps are written a second time. What MLflow has of them already it cannot forget: of two points of one
step the one with the later time counts there, as it does for MLflow itself.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from foundry.utils.events import MetricsCallback
from foundry.utils.files import write_text
from foundry.utils.log import get_logger

SYSTEM = "system/"  # prefix of the machine's metrics: their steps count samples, and no rollback touches them


class Spool(MetricsCallback):
    """The spool of one run, in its state folder. Any thread of one process may log; any process may read."""

    def __init__(self, folder: Path, marks: Path | None = None) -> None:
        """marks: folder of the mark of what a store has; the state folder itself for the run's own store."""
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._offset = folder / "metrics.jsonl", (marks or folder) / "uploaded.offset"
        self._fd: int | None = None
        self._lock = threading.Lock()
        self._newest: dict[str, int] = {}  # the last step of each metric
        self._clock = 0  # ms
        self._returns: list[tuple[int, int]] = []  # where a line with `back` begins, and the step in it
        self._searched = 0  # bytes of the file in which they were looked for
        self.unwritten = b""  # what a full disk did not take

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends a point; never raises for the disk: what it does not take is kept in memory and tried again with the next point."""
        with self._lock:
            self._open()
            new = {k: float(v) for k, v in metrics.items() if step > self._newest.get(k, -1)}
            if not new:
                return
            self._newest.update(dict.fromkeys(new, step))
            self._clock = max(self._clock, int(time.time() * 1000))
            self._write(json.dumps({"t": self._clock, "s": step, "m": new}).encode() + b"\n")

    def back_to(self, step: int) -> None:
        """Training returned to this step: its points of later steps are void. Never raises for the disk, as `log`."""
        with self._lock:
            self._open()
            self._newest = _after_return(self._newest, step)
            self._clock = max(self._clock + 1, int(time.time() * 1000))  # what follows is later than what is void
            self._write(json.dumps({"back": step, "t": self._clock}).encode() + b"\n")

    def next_step(self, key: str) -> int:
        """One more than the last step of a metric; 0 when it has none."""
        with self._lock:
            self._open()
            return self._newest.get(key, -1) + 1

    def _open(self) -> None:
        if self._fd is not None:
            return
        for point in self._lines():
            if "back" in point:
                self._newest = _after_return(self._newest, point["back"])
            else:
                self._newest.update(dict.fromkeys(point["m"], point["s"]))
            self._clock = max(self._clock, point["t"])
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            self.unwritten = b"\n"  # ends a line that a killed writer cut off, so that the next one does not join it

    def _write(self, line: bytes) -> None:
        full, data = bool(self.unwritten.strip()), self.unwritten + line
        try:
            written = os.write(self._fd, data)
        except OSError as e:
            written = 0
            if not full:
                get_logger().warning(
                    "cannot write metrics to %s (%s): kept in memory, tried again with every point",
                    self.path,
                    e.strerror,
                )
        self.unwritten = data[written:]

    def _lines(self) -> Iterator[dict[str, Any]]:
        """Points, and the returns of training to an earlier step, in their order."""
        if not self.path.exists():
            return
        with open(self.path, "rb") as f:
            for line in f:
                if line.endswith(b"\n") and (point := _parsed(line)):
                    yield point

    def pending(self, limit: int = 500) -> tuple[list[tuple[str, float, int, int]], int]:
        """([(key, value, time in ms, step)], offset after them): points that were not delivered, about `limit` at a time; none: there are no more."""
        offset = int(self._offset.read_text()) if self._offset.exists() else 0
        rows: list[tuple[str, float, int, int]] = []
        if not self.path.exists():
            return rows, offset
        with open(self.path, "rb") as f:
            self._find_returns(f)
            f.seek(offset)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                if (point := _parsed(line)) and "m" in point:
                    step = point["s"]
                    void = any(offset <= at and step > back for at, back in self._returns)
                    rows += [
                        (k, v, point["t"], step) for k, v in point["m"].items() if not void or k.startswith(SYSTEM)
                    ]
                if len(rows) >= limit:
                    break
        return rows, offset

    def _find_returns(self, f: BinaryIO) -> None:
        """Looks for the returns of training to an earlier step in what was added since the last time."""
        f.seek(self._searched)
        for line in f:
            if not line.endswith(b"\n"):
                break
            if line.startswith(b'{"back"') and (point := _parsed(line)):
                self._returns.append((self._searched, point["back"]))
            self._searched += len(line)

    def delivered(self, offset: int) -> None:
        write_text(self._offset, str(offset))

    def sync(self) -> None:
        """Tries again what a full disk did not take, and has the disk keep all, for the case that the machine loses its power."""
        with self._lock:
            fd = self._fd
            if fd is not None and self.unwritten.strip():
                self._write(b"")
        if fd is not None:
            os.fsync(fd)

    def close(self) -> None:
        with self._lock:
            if self._fd is not None:
                os.close(self._fd)
            self._fd = None


def _after_return(newest: dict[str, int], step: int) -> dict[str, int]:
    """The last steps of the metrics when training returned to `step`."""
    return {k: s if k.startswith(SYSTEM) else min(s, step) for k, s in newest.items()}


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The point of a line; None of one that a kill cut off."""
    try:
        return json.loads(line)
    except ValueError:
        return None
