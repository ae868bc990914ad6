"""A lock file of DVC's that a kill cut off is removed, a whole one and one that a living DVC writes are not."""

import fcntl
import subprocess
import sys

import pytest

from foundry.utils.rwlock import mend_rwlock


@pytest.fixture
def path(tmp_path):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return tmp_path / ".dvc/tmp/rwlock"


@pytest.mark.parametrize("cut", ["", '{"read": {"/a": [{"pid": 1'])
def test_a_list_that_is_cut_off_is_removed(path, tmp_path, cut):
    assert not mend_rwlock(tmp_path)
    path.write_text(cut)
    assert mend_rwlock(tmp_path) and not path.exists()


def test_a_whole_one_stays_and_one_that_is_being_written(path, tmp_path):
    path.write_text("{}")
    assert not mend_rwlock(tmp_path) and path.read_text() == "{}"
    path.write_text("")
    with open(path.with_name("rwlock.lock"), "w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        assert not mend_rwlock(tmp_path) and path.exists()


def test_dvc_works_again_after_the_check(toy_project):
    rwlock = toy_project / ".dvc/tmp/rwlock"
    rwlock.parent.mkdir(exist_ok=True)
    rwlock.write_text("")

    def repro():
        command = [sys.executable, "-m", "dvc", "repro", "one"]
        return subprocess.run(command, cwd=toy_project, capture_output=True, text=True)

    assert "structure is corrupted" in repro().stderr
    done = subprocess.run(
        [sys.executable, "-m", "foundry.cli", "check"], cwd=toy_project, capture_output=True, text=True
    )
    assert done.returncode == 0 and "which a killed DVC left cut off" in done.stdout
    assert repro().returncode == 0


@pytest.fixture
def toy_project(tmp_path):
    from toy import make_toy

    return make_toy(tmp_path / "toy")
