"""Texts on disk, read back by number: what lets the deduplication compare documents without holding them."""

from __future__ import annotations

import os
import tempfile
from array import array
from pathlib import Path

from foundry.utils.files import told_space


class Spool:
    """Appends texts and reads any of them; 8 bytes of memory a text. The file has no name and goes with the process."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - __exit__ closes it
        self._ends = array("Q", [0])
        self._written = 0

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, data: bytes) -> None:
        with told_space(self._folder):
            self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def read(self, i: int) -> bytes:
        if self._written < self._ends[i + 1]:
            with told_space(self._folder):
                self._file.flush()
            self._written = self._ends[-1]
        start = self._ends[i]
        return os.pread(self._file.fileno(), self._ends[i + 1] - start, start)
