"""What all kinds of transfer share: the store of finished files, the room on the disk, the progress bar.

The store lies under `.foundry/downloads/`: a finished file under its hash, small files of facts beside the folders.
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from foundry.config import DataError
from foundry.utils.files import sha256_file

SPARE = 64 << 20  # bytes that a transfer leaves free on the disk
MOST_THREADS = 32
T = TypeVar("T")


_busy: dict[str, threading.Lock] = {}


def alone(address: str) -> threading.Lock:
    """The lock of an address: two sources may name the same one, and its part file has one writer."""
    return _busy.setdefault(address, threading.Lock())


@dataclass(frozen=True)
class Fetched:
    """A file of a source: where its bytes lie now, its name below the source's folder, and the address by which
    `data.lock.json` knows it (None for files of this machine)."""

    path: Path
    name: str
    address: str | None = None


def check_names(names: Iterable[str], where: str) -> None:
    """Refuses names, as others list them, that would leave the folder they are meant for.

    Raises:
        DataError: naming the first of them.
    """
    for name in names:
        if not {"", ".", ".."}.isdisjoint(name.split("/")) or "\\" in name or "\0" in name:
            raise DataError(f"{where} holds a file named {name!r}, which leads out of its folder; narrow the pattern")


def stored(store: Path, sha256: str, name: str) -> Path | None:
    """The finished file of that hash, checked; a damaged one is removed."""
    path = store / sha256 / name
    if not path.is_file():
        return None
    if sha256_file(path) == sha256:
        return path
    path.unlink()
    return None


def read_facts(path: Path) -> dict[str, Any]:
    """A small file of ours; what a crash left of it counts as nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def check_room(folder: Path, needed: int, what: str) -> None:
    """Refuses to begin what cannot end.

    Raises:
        DataError: with the bytes needed and the bytes free.
    """
    free = shutil.disk_usage(folder).free
    if needed + SPARE > free:
        raise DataError(
            f"{what}: {needed:,} bytes are to be written to {folder}, where {free:,} are free "
            f"({SPARE:,} are left alone); make room, or move the project to a larger disk"
        )


class Stopped(Exception):
    """The user ended the download; what came stays for the next one."""


class Meter:
    """One progress bar of all transfers, and their number at a time. The total grows as lengths become known."""

    def __init__(self, bar: Any, parallel: int) -> None:
        self._bar, self._lock, self._stopped = bar, threading.Lock(), threading.Event()
        self.slot = threading.Semaphore(parallel)

    def expect(self, n: int) -> None:
        """`n` more bytes are announced (fewer, if negative: a transfer broke)."""
        with self._lock:
            self._bar.total = (self._bar.total or 0) + n

    def stop(self) -> None:
        """Ends every transfer at its next bytes."""
        self._stopped.set()

    def advance(self, n: int) -> None:
        """
        Raises:
            Stopped: after `stop`.
        """
        if self._stopped.is_set():
            raise Stopped
        with self._lock:
            self._bar.update(n)

    def each(self, transfer: Callable[[T], Fetched], items: list[T]) -> list[Fetched]:
        """Calls `transfer` for all items, as many at a time as there are free slots; the results in their order."""

        def one(item: T) -> Fetched:
            with self.slot:
                return transfer(item)

        with ThreadPoolExecutor(min(len(items), MOST_THREADS)) as pool:
            return list(pool.map(one, items))
