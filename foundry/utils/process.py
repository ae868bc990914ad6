"""Process hygiene of long work: die with the parent, stop cleanly, one worker per state folder.

Measured needs, each with a test: killing `dvc` leaves its stage running as an orphan unless the kernel passes the death on;
two trainers on one folder destroy each other's checkpoints unless a lock forbids it.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from foundry.config import LockError
from foundry.utils.files import disk_errors, make_folder

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(sig: int = signal.SIGTERM) -> None:
    """On Linux: have the kernel send `sig` to this process when its parent dies. Elsewhere: nothing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call
        os.kill(os.getpid(), sig)


def as_worker() -> None:
    """Makes this process one of a pool: it ends with its parent, and of Ctrl-C without a traceback of its own."""
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that a loop reads between steps; a second signal ends the process at once.

    Under torchrun one Ctrl-C arrives twice, from the terminal and from the launcher: there only a later signal is a second one.
    The former handlers come back when the block ends.
    """

    ECHO = 2.0  # seconds

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    def __enter__(self) -> StopSignal:
        self._old = {s: signal.signal(s, self._on) for s in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _on(self, signum: int, frame: object) -> None:
        if self.signal is None:
            self.signal, self._since = signum, time.monotonic()
            if os.environ.get("RANK", "0") == "0":  # one of several processes says it
                os.write(2, b"stopping after this step, which is saved; a second signal stops at once\n")
        elif "TORCHELASTIC_RUN_ID" not in os.environ or time.monotonic() - self._since > self.ECHO:
            os._exit(128 + signum)

    def __exit__(self, *exc: object) -> None:
        for s, handler in self._old.items():
            signal.signal(s, handler)


class Stopped(SystemExit):
    """Raised after a requested stop whose state was saved; the exit code is 128 + signal, as a shell gives it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)


@contextmanager
def exclusive(
    path: Path,
    what: str = "this work",
    *,
    wait: float | None = 0.0,
    note: str | None = "",
    on_wait: Callable[[LockError], None] = lambda error: None,
) -> Iterator[None]:
    """Holds a lock file (`flock`); the kernel frees it with the process, however it ends.

    The project has no other lock. A child does not inherit it: Python closes the file when the child becomes another program.

    Args:
        what: names the work in the message.
        wait: seconds to wait for another holder; None waits for as long as it takes.
        note: written into the file behind this process's number, for whoever finds it locked; None leaves the file's content as it is.
        on_wait: called once, with the error that no wait would raise, before waiting.

    Raises:
        LockError: if another process, or another thread, holds it after `wait` seconds; the message names its pid.
        DiskError: if the disk does not take the file.
    """
    end = None if wait is None else time.monotonic() + wait
    with ExitStack() as stack:
        make_folder(path.parent)
        with disk_errors(path.parent):
            f = stack.enter_context(open(path, "a+"))
        waiting = False
        while True:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                error = _held(f, path, what)
            if end is not None and time.monotonic() >= end:
                raise error
            if not waiting:
                waiting = True
                on_wait(error)
            time.sleep(0.05)
        if note is not None:
            f.seek(0)
            f.truncate()
            with disk_errors(path.parent):
                f.write(f"{os.getpid()} {note}".strip())
                f.flush()
        yield


def _held(f: IO[str], path: Path, what: str) -> LockError:
    f.seek(0)
    number, _, note = f.read().strip().partition(" ")
    words = ", ".join(filter(None, (f"pid {number or 'unknown'}", note, f"lock {path}")))
    pid = int(number) if number.isdigit() else None
    return LockError(f"{what} is already running ({words}); wait for it or stop that process", pid, note)


@contextmanager
def locked_if_free(path: Path, *, wait: float = 0.0, note: str | None = "") -> Iterator[bool]:
    """As `exclusive`, but gives False, and holds nothing, when another holder keeps it for longer than `wait` seconds."""
    with ExitStack() as stack:
        try:
            stack.enter_context(exclusive(path, wait=wait, note=note))
            free = True
        except LockError:
            free = False
        yield free
