"""Lock files: one holder at a time, who holds them, and what a kill leaves."""

import os
import subprocess
import sys
import threading

import pytest

from foundry.config import LockError
from foundry.utils.locks import Holder, exclusive, holder_of, locked_if_free

HOLD = (
    "import sys, time\nfrom pathlib import Path\nfrom foundry.utils.locks import exclusive\n"
    "with exclusive(Path(sys.argv[1]), 'x', note='a note'):\n    print('held', flush=True)\n    time.sleep(60)"
)


@pytest.fixture
def other(tmp_path):
    """Another process, which holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "lock")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_lock_has_one_holder_and_a_kill_releases_it(other, tmp_path):
    lock = tmp_path / "lock"
    message = f"training abc is already running \\(pid {other.pid}, a note, lock {lock}\\)"
    with pytest.raises(LockError, match=message) as e, exclusive(lock, "training abc"):
        pass
    assert (e.value.pid, e.value.note) == (other.pid, "a note")
    other.kill()
    other.wait()
    with exclusive(lock, "training abc"):
        assert lock.read_text() == str(os.getpid())


def test_whoever_does_not_need_the_lock_learns_that_it_is_taken(other, tmp_path):
    lock = tmp_path / "lock"
    with locked_if_free(lock) as free:
        assert not free
    other.kill()
    other.wait()
    with locked_if_free(lock, note=None) as free:
        assert free and lock.read_text() == f"{other.pid} a note"  # the content is left as it is
        with pytest.raises(LockError), exclusive(lock):
            pass


def test_waiting_is_announced_once_and_ends_with_the_holder(other, tmp_path):
    seen = []

    def on_wait(error):
        seen.append((error.pid, error.note))
        threading.Timer(0.2, other.kill).start()

    with exclusive(tmp_path / "lock", wait=None, on_wait=on_wait):
        assert seen == [(other.pid, "a note")]


def test_the_holder_is_the_process_that_has_the_lock_not_the_one_that_the_file_names(other, tmp_path):
    lock = tmp_path / "lock"
    assert holder_of(lock) == Holder(other.pid, "a note")
    other.kill()
    other.wait()
    assert holder_of(lock) is None
    lock.write_text(str(os.getppid()))  # a living process, which does not hold it
    assert holder_of(lock) is None
    with exclusive(lock, note="x"):
        assert holder_of(lock) == Holder(os.getpid(), "x")
    assert holder_of(lock) is None
