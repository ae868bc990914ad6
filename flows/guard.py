"""Runs a server of `make ui`, and ends it together with everything that it started.

When `make ui` is killed, the kernel sends SIGTERM to its children, but not to theirs: MLflow and Prefect run their web
server as a child of their own, which would keep the port. This process is the child of `make ui`, and leads the process
group that all of them are in.

    python guard.py COMMAND ...
"""

import contextlib
import os
import signal
import subprocess
import sys

GRACE = 15.0  # seconds that a server has after SIGTERM


class Terminated(Exception):
    """SIGTERM arrived."""


def main() -> None:
    signal.signal(signal.SIGTERM, _on_sigterm)
    child = None
    try:
        child = subprocess.Popen(sys.argv[1:])
        code = child.wait()
        _signal_group(signal.SIGTERM)  # what is left of it
    except Terminated:
        end(child)
    if code < 0:  # this process ends in the same way, so that `make ui` can name the signal
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _on_sigterm(*_: object) -> None:
    """Leaves `wait`, which holds the child's lock while it is interrupted: a second `wait` here would never return."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Terminated


def end(child: subprocess.Popen | None) -> None:
    """Ends the child, by SIGKILL after `GRACE` seconds, and then the whole group, this process included."""
    _signal_group(signal.SIGTERM)
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _signal_group(signum: int) -> None:
    signal.signal(signum, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signum)


if __name__ == "__main__":
    main()
