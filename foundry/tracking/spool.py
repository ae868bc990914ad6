"""The spool: metrics are written to disk first, to a file that no network can slow down; a mark says what was
delivered.

A record is one line, written by one call, with its original time. MLflow ignores a point that it has already (same key,
value, time and step), so delivering twice changes nothing. An incomplete last line, which a kill leaves, is skipped. A
trainer that resumes from a checkpoint repeats the steps since then: their points are in the file already and are not
written again, so the steps of a metric only increase. So do its times, even when the clock is set back.

A rollback is the exception: training returns to a step and takes other batches from there. A line with `back` records
it. Earlier points of later steps become void: they are not delivered any more, and these steps are written a second
time. MLflow cannot forget points that it has received: of two points of one step the one with the later time counts
there.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

from foundry.utils.events import MetricsCallback
from foundry.utils.files import write_text
from foundry.utils.log import get_logger

METRICS, OFFSET = "metrics.jsonl", "uploaded.offset"
SYSTEM = "system/"  # prefix of the machine's metrics: their steps count samples, and a rollback does not change them


class Point(NamedTuple):
    """One value of one metric, in the order of the arguments of MLflow's `Metric`; `time` is in ms since the epoch."""

    key: str
    value: float
    time: int
    step: int


@dataclass(frozen=True)
class Pending:
    """Points that were not delivered, and the offset in the spool that marks them as delivered."""

    points: list[Point]
    offset: int


@dataclass(frozen=True)
class Logged:
    """A line of the spool: metrics of one step."""

    time: int
    step: int
    metrics: dict[str, float]

    def line(self) -> bytes:
        return json.dumps({"t": self.time, "s": self.step, "m": self.metrics}).encode() + b"\n"


@dataclass(frozen=True)
class Return:
    """A line of the spool: training returned to an earlier step."""

    step: int
    time: int

    def line(self) -> bytes:
        return json.dumps({"back": self.step, "t": self.time}).encode() + b"\n"


def parse_line(line: bytes) -> Logged | Return | None:
    """Reads a line of a spool; None if it is incomplete, as a kill leaves the last one, or damaged."""
    try:
        values = json.loads(line)
        if "back" in values:
            return Return(int(values["back"]), int(values["t"]))
        return Logged(int(values["t"]), int(values["s"]), {k: float(v) for k, v in values["m"].items()})
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


class Spool(MetricsCallback):
    """The spool of one run, in its state folder. Any thread of one process may log; any process may read."""

    def __init__(self, folder: Path, marks: Path | None = None) -> None:
        """Opens the spool, and creates the folder where it is missing.

        Args:
            folder: the state folder of the run.
            marks: folder of the mark of what a store has received; the state folder itself for the run's own store.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._offset = folder / METRICS, (marks or folder) / OFFSET
        self._fd: int | None = None
        self._lock = threading.Lock()
        self._newest: dict[str, int] = {}  # the last step of each metric
        self._clock = 0  # ms
        self._returns: list[tuple[int, int]] = []  # (offset of the line of a return, the step that it returns to)
        self._searched = 0  # bytes of the file that were searched for returns
        self.unwritten = b""  # what a full disk did not accept

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Appends a record.

        Never raises for the disk: what it does not accept is kept in memory and retried with the next record.
        """
        with self._lock:
            self._open()
            new = {k: float(v) for k, v in metrics.items() if step > self._newest.get(k, -1)}
            if not new:
                return
            self._newest.update(dict.fromkeys(new, step))
            self._clock = max(self._clock, int(time.time() * 1000))
            self._write(Logged(self._clock, step, new).line())

    def back_to(self, step: int) -> None:
        """Records that training returned to this step: points of later steps are void.

        Never raises for the disk, as `log`.
        """
        with self._lock:
            self._open()
            self._newest = _after_return(self._newest, step)
            self._clock = max(self._clock + 1, int(time.time() * 1000))  # what follows is later than what is void
            self._write(Return(step, self._clock).line())

    def next_step(self, key: str) -> int:
        """The last step of a metric plus one; 0 if it has none."""
        with self._lock:
            self._open()
            return self._newest.get(key, -1) + 1

    def _open(self) -> None:
        if self._fd is not None:
            return
        for record in self._records():
            if isinstance(record, Return):
                self._newest = _after_return(self._newest, record.step)
            else:
                self._newest.update(dict.fromkeys(record.metrics, record.step))
            self._clock = max(self._clock, record.time)
        self._fd = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        size = os.fstat(self._fd).st_size
        if size and os.pread(self._fd, 1, size - 1) != b"\n":
            self.unwritten = b"\n"  # ends the incomplete line of a killed writer, so that the next one does not join it

    def _write(self, line: bytes) -> None:
        was_full, data = bool(self.unwritten.strip()), self.unwritten + line
        try:
            written = os.write(self._fd, data)
        except OSError as e:
            written = 0
            if not was_full:
                get_logger().warning(
                    "cannot write metrics to %s (%s): they are kept in memory, and every new point retries the write",
                    self.path,
                    e.strerror,
                )
        self.unwritten = data[written:]

    def _records(self) -> Iterator[Logged | Return]:
        if not self.path.exists():
            return
        with open(self.path, "rb") as f:
            for line in f:
                if line.endswith(b"\n") and (record := parse_line(line)):
                    yield record

    def pending(self, limit: int = 500) -> Pending:
        """The next points that were not delivered, about `limit` of them; without any point there are no more."""
        offset = int(self._offset.read_text()) if self._offset.exists() else 0
        points: list[Point] = []
        if not self.path.exists():
            return Pending(points, offset)
        with open(self.path, "rb") as f:
            self._find_returns(f)
            f.seek(offset)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                if isinstance(record := parse_line(line), Logged):
                    void = any(offset <= at and record.step > back for at, back in self._returns)
                    points += [
                        Point(k, v, record.time, record.step)
                        for k, v in record.metrics.items()
                        if not void or k.startswith(SYSTEM)
                    ]
                if len(points) >= limit:
                    break
        return Pending(points, offset)

    def _find_returns(self, f: BinaryIO) -> None:
        """Searches what was added to the file since the last search for returns to an earlier step."""
        f.seek(self._searched)
        for line in f:
            if not line.endswith(b"\n"):
                break
            if line.startswith(b'{"back"') and isinstance(record := parse_line(line), Return):
                self._returns.append((self._searched, record.step))
            self._searched += len(line)

    def delivered(self, offset: int) -> None:
        """Marks everything before this offset of the file as delivered."""
        write_text(self._offset, str(offset))

    def sync(self) -> None:
        """Retries what a full disk did not accept, and flushes the file to disk, in case the machine loses power."""
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
    """The last step of each metric after training returned to `step`."""
    return {k: s if k.startswith(SYSTEM) else min(s, step) for k, s in newest.items()}
