"""What all kinds of transfer share: the store of finished files, the space on the disk, the progress bar.

The store is `.foundry/downloads/`: each finished file in a folder named by its hash, and beside the folders one small
JSON file of notes per transfer.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from foundry.config import DataError
from foundry.utils.files import sha256_file

SPARE = 64 << 20  # bytes that a transfer leaves free on the disk
MOST_THREADS = 32
T = TypeVar("T")
Note = TypeVar("Note", bound=BaseModel)

_locks: dict[str, threading.Lock] = {}


def lock_of(address: str) -> threading.Lock:
    """The lock of an address: two sources may name the same one, and its part file has one writer."""
    return _locks.setdefault(address, threading.Lock())


@dataclass(frozen=True)
class Fetched:
    """A file of a source.

    Attributes:
        path: where its bytes are now.
        name: below the folder of the source.
        address: its key in `data.lock.json`; None for files of this machine.
    """

    path: Path
    name: str
    address: str | None = None


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses names in the listing of a server that would leave the folder of the source.

    Raises:
        DataError: naming the first of them.
    """
    for name in names:
        if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\\" in name or "\0" in name:
            raise DataError(
                f"{where} contains a file named {name!r}, which leads out of its folder; narrow the pattern"
            )


def stored(store: Path, sha256: str, name: str) -> Path | None:
    """The finished file of that hash, verified; a damaged one is removed."""
    path = store / sha256 / name
    if not path.is_file():
        return None
    if sha256_file(path) == sha256:
        return path
    path.unlink()
    return None


def read_note(path: Path, schema: type[Note]) -> Note | None:
    """What is noted about a transfer; None if there is nothing, or what a crash left of it."""
    try:
        return schema.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuses to begin a transfer that does not fit on the disk.

    Raises:
        DataError: with the bytes needed and the bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise DataError(
            f"{what}: {needed:,} bytes are to be written to {folder}, where {free:,} are free "
            f"({SPARE:,} stay free); make room, or move the project to a larger disk"
        )


class DownloadStopped(Exception):
    """The download was cancelled; what was received stays for the next one."""


class Transfers:
    """The transfers of a download: their common progress bar, and `slot`, which limits how many run at a time.

    The total of the bar grows as lengths become known.
    """

    def __init__(self, bar: Any, parallel: int) -> None:
        self._bar, self._lock, self._stopped = bar, threading.Lock(), threading.Event()
        self.slot = threading.Semaphore(parallel)

    def expect(self, n: int) -> None:
        """`n` more bytes are announced; a negative `n` takes back those of a broken transfer."""
        with self._lock:
            self._bar.total = (self._bar.total or 0) + n

    def stop(self) -> None:
        """Ends every transfer when its next bytes come."""
        self._stopped.set()

    def advance(self, n: int) -> None:
        """`n` bytes came.

        Raises:
            DownloadStopped: after `stop`.
        """
        if self._stopped.is_set():
            raise DownloadStopped
        with self._lock:
            self._bar.update(n)

    def each(self, transfer: Callable[[T], Fetched], items: list[T]) -> list[Fetched]:
        """Calls `transfer` for all items, at most as many at once as there are slots; results in order."""

        def one(item: T) -> Fetched:
            with self.slot:
                return transfer(item)

        with ThreadPoolExecutor(min(len(items), MOST_THREADS)) as pool:
            return list(pool.map(one, items))
