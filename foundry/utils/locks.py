"""Lock files: one process at a time does a piece of work. The project has no other lock between processes.

A lock is a `flock` of the kernel on a file that stays in place: the kernel releases it when its process ends, however
it ends. A child process does not inherit it, because Python closes the file when the child starts another program. The
file contains the number of the process that holds the lock and a note, so that whoever has to wait learns for what.

The library `filelock` is not used: it does not record who holds a lock, and on a file system without `flock` it
silently falls back to a lock that outlives its process.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from foundry.config import LockError
from foundry.utils.files import disk_errors, make_folder

POLL = 0.05  # seconds between two attempts to get a lock that another process holds


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes:
        pid: its number, as it wrote it into the lock file; None if it wrote none.
        note: what else it wrote there.
    """

    pid: int | None
    note: str

    @classmethod
    def parse(cls, text: str) -> Holder:
        """Reads the content of a lock file."""
        number, _, note = text.strip().partition(" ")
        return cls(int(number) if number.isdecimal() else None, note.strip())


@contextmanager
def exclusive(
    path: Path,
    what: str = "this work",
    *,
    wait: float | None = 0.0,
    note: str | None = "",
    on_wait: Callable[[LockError], None] = lambda error: None,
) -> Iterator[None]:
    """Holds a lock file while the block runs.

    Args:
        path: the lock file; it and its folder are created where they are missing.
        what: names the work in the error message.
        wait: seconds to wait for another holder; None waits for as long as it takes.
        note: is written into the file after the number of this process, for whoever finds the file locked; None leaves
            the content as it is.
        on_wait: is called once, before waiting, with the error that would be raised without waiting.

    Raises:
        LockError: if another process, or another thread of this one, still holds the lock after `wait` seconds.
        DiskError: if the file cannot be written.
    """
    deadline = None if wait is None else time.monotonic() + wait
    with ExitStack() as stack:
        make_folder(path.parent)
        with disk_errors(path.parent):
            f = stack.enter_context(open(path, "a+", encoding="utf-8", errors="replace"))
        waiting = False
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                f.seek(0)
                error = _lock_error(what, path, Holder.parse(f.read()))
            if deadline is not None and time.monotonic() >= deadline:
                raise error
            if not waiting:
                waiting = True
                on_wait(error)
            time.sleep(POLL)
        if note is not None:
            f.seek(0)
            f.truncate()
            with disk_errors(path.parent):
                f.write(f"{os.getpid()} {note}".strip())
                f.flush()
        yield


def _lock_error(what: str, path: Path, holder: Holder) -> LockError:
    pid = "unknown" if holder.pid is None else holder.pid
    facts = ", ".join(filter(None, (f"pid {pid}", holder.note, f"lock {path}")))
    message = f"{what} is already running ({facts}); wait until it ends, or stop that process"
    return LockError(message, holder.pid, holder.note)


@contextmanager
def locked_if_free(path: Path, *, wait: float = 0.0, note: str | None = "") -> Iterator[bool]:
    """Like `exclusive`, but yields whether it holds the lock instead of raising `LockError`."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path, wait=wait, note=note))
            free = True
        except LockError:
            free = False
        yield free


def holder_of(path: Path) -> Holder | None:
    """The living process that holds a lock file; None if there is none.

    Only reads: whether the process that the file names still holds the lock is taken from the kernel's table of locks.
    Trying the lock instead would make a trainer fail that starts at that moment.
    """
    try:
        holder, inode = Holder.parse(path.read_text(encoding="utf-8")), path.stat().st_ino
        held = holder.pid is not None and holder.pid in _holders(path, inode)
    except (OSError, ValueError):  # there is no such file, or it is damaged
        return None
    return holder if held else None


def _holders(path: Path, inode: int) -> set[int]:
    """Processes with a lock on the file: by Linux's `proc_locks(5)`, elsewhere those that have the file open."""
    table = Path("/proc/locks")
    if not table.exists():
        return _with_open_file(path)
    lines = table.read_text(encoding="ascii").splitlines()
    rows = (line.split() for line in lines if " FLOCK " in line and "->" not in line)  # "->": waits for the lock
    return {int(row[-4]) for row in rows if row[-3].endswith(f":{inode}")}


def _with_open_file(path: Path) -> set[int]:
    import psutil

    found = set()
    for process in psutil.process_iter():
        try:
            if str(path.resolve()) in {f.path for f in process.open_files()}:
                found.add(process.pid)
        except psutil.Error:  # the process has ended, or belongs to another user
            continue
    return found
