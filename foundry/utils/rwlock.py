"""Mends what a killed DVC may leave: its list of who reads and writes what, cut off while it was written.

Every later DVC command (3.67) refuses such a list, `.dvc/tmp/rwlock`, until it is removed by hand. It is removed here under DVC's own lock, so that no living
DVC is in the middle of writing it; the entries of dead processes DVC clears away by itself.
"""

from __future__ import annotations

import fcntl
import json
from pathlib import Path


def mend_rwlock(root: str | Path = ".") -> bool:
    """Removes a list that is cut off; whether there was one."""
    path = Path(root) / ".dvc" / "tmp" / "rwlock"
    if not path.exists():
        return False
    with open(path.with_name("rwlock.lock"), "a") as guard:
        try:
            fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # a living DVC holds it
            return False
        try:
            json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            path.unlink()
            return True
    return False
