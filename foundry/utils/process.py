"""Long work in processes: end with the parent, stop cleanly on a signal.

A measured need, with a test: killing `dvc` leaves its stage running as an orphan, unless the kernel signals the death
of the parent.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(sig: int = signal.SIGTERM) -> None:
    """On Linux, has the kernel send `sig` to this process when its parent dies; elsewhere it does nothing."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, sig, 0, 0, 0)
    if os.getppid() != parent:  # the parent died before the call
        os.kill(os.getpid(), sig)


def as_worker() -> None:
    """Makes this process a worker of a pool: it ends with its parent, and on Ctrl-C without a traceback of its own.

    A job that ignores Ctrl-C, as a shell starts one in the background, has workers that ignore it too.
    """
    die_with_parent()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)


class StopSignal:
    """Turns SIGTERM and SIGINT into a flag that a loop reads between steps; a second signal ends the process at once.

    Under torchrun one Ctrl-C arrives twice, from the terminal and from the launcher: a repetition within `ECHO` seconds
    does not count as a second signal there. The former handlers are restored when the block ends.
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
            if os.environ.get("RANK", "0") == "0":  # only one of several processes reports it
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
