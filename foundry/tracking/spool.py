"""Metrics on disk first: an append-only file that no network can slow down, and the mark of what was delivered.

A point is one line, written with one call and its original time; MLflow ignores a point that it has (same key, value, time, step), so delivering twice
changes nothing. A last line that a kill cut off is passed over.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from foundry.utils.files import write_text


class Spool:
    """The spool of one run, in its state folder."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self._offset = folder / "metrics.jsonl", folder / "uploaded.offset"
        self._fd: int | None = None

    def log(self, step: int, metrics: dict[str, float]) -> None:
        if self._fd is None:
            self._mend()
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        line = json.dumps({"t": int(time.time() * 1000), "s": step, "m": {k: float(v) for k, v in metrics.items()}})
        os.write(self._fd, line.encode() + b"\n")

    def _mend(self) -> None:
        """Ends a line that a killed writer cut off, so that the next one does not join it."""
        if self.path.exists() and (data := self.path.read_bytes()) and not data.endswith(b"\n"):
            with open(self.path, "ab") as f:
                f.write(b"\n")

    def pending(self, limit: int = 500) -> tuple[list[tuple[str, float, int, int]], int]:
        """([(key, value, time in ms, step)], offset after them): points that were not delivered, about `limit` at a time."""
        offset = int(self._offset.read_text()) if self._offset.exists() else 0
        rows: list[tuple[str, float, int, int]] = []
        if not self.path.exists():
            return rows, offset
        with open(self.path, "rb") as f:
            f.seek(offset)
            for line in f:
                if not line.endswith(b"\n"):
                    break
                offset += len(line)
                try:
                    point = json.loads(line)
                except ValueError:  # cut off by a kill, ended by `_mend`
                    continue
                rows += [(k, v, point["t"], point["s"]) for k, v in point["m"].items()]
                if len(rows) >= limit:
                    break
        return rows, offset

    def delivered(self, offset: int) -> None:
        write_text(self._offset, str(offset))

    def close(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None
