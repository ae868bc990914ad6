"""Runs a server of `make ui`, and ends it with everything that it started.

When `make ui` is killed the kernel sends SIGTERM to its children, but not to theirs: MLflow and Prefect run their web server as a child of their own, which
would keep the port. This process is the child of `make ui`, and leads the process group that all of them are in.

    python guard.py COMMAND ...
"""

import contextlib
import os
import signal
import subprocess
import sys

GRACE = 15.0  # seconds that a server has after SIGTERM


class Ending(Exception):
    """SIGTERM came."""


def main() -> None:
    signal.signal(signal.SIGTERM, _stop)
    child = None
    try:
        child = subprocess.Popen(sys.argv[1:])
        code = child.wait()
        _tell_group(signal.SIGTERM)  # what is left of it
    except Ending:
        end(child)
    if code < 0:  # as its own end, so that `make ui` can say which signal it was
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    sys.exit(code)


def _stop(*_: object) -> None:
    """Leaves `wait`: while it is interrupted it holds the lock of the child, and a second one here would see no end of the child."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Ending


def end(child: subprocess.Popen | None) -> None:
    """Ends the child, or after `GRACE` kills it, and the whole group with this process."""
    _tell_group(signal.SIGTERM)
    if child is not None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(GRACE)
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _tell_group(signum: int) -> None:
    signal.signal(signum, signal.SIG_IGN)
    os.killpg(os.getpgrp(), signum)


if __name__ == "__main__":
    main()
