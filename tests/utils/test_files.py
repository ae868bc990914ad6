"""Files appear whole or not at all, under every kind of end."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from foundry.config import CheckpointError, FoundryError
from foundry.utils.checkpoint import load_checkpoint, save_checkpoint
from foundry.utils.files import atomic_dir, atomic_write, sha256_tree, write_json


def test_a_failed_write_keeps_the_former_file_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(path) as f:
        f.write(b"new")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_a_failed_folder_keeps_the_former_one(tmp_path):
    path = tmp_path / "d"
    with atomic_dir(path) as tmp:
        (tmp / "x").write_text("old")
    with pytest.raises(RuntimeError), atomic_dir(path) as tmp:
        (tmp / "x").write_text("new")
        raise RuntimeError
    assert (path / "x").read_text() == "old" and os.listdir(tmp_path) == ["d"]


def test_a_full_disk_is_told_with_the_room_left_and_leaves_nothing(tmp_path):
    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(FoundryError, match=r"No space left.*MiB are free.*run the same command again"),
        atomic_write(tmp_path / "a") as f,
    ):
        f.write(b"part")
        full()
    assert os.listdir(tmp_path) == []


def test_a_really_full_disk_is_told_by_the_stage_that_meets_it():
    """/dev/full refuses every write as a full disk does."""
    code = (
        "from foundry.utils.files import told_space\nfrom pathlib import Path\n"
        "with told_space(Path('/tmp')):\n    with open('/dev/full', 'w', buffering=1) as f: f.write('x\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot write in /tmp: No space left on device" in done.stderr


def test_written_files_can_be_read_by_other_users(tmp_path):
    write_json(tmp_path / "a.json", {"x": 1})
    save_checkpoint(tmp_path / "c", {"t": torch.ones(2)}, {})
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in tmp_path.rglob("*") if p.is_file())


def test_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", float("nan"))
    assert os.listdir(tmp_path) == []


def test_the_hash_of_a_folder_sees_names_and_bytes(tmp_path):
    (tmp_path / "a").write_text("1")
    one = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = sha256_tree(tmp_path)
    (tmp_path / "b").write_text("2")
    assert len({one, two, sha256_tree(tmp_path)}) == 3


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path):
    tensors = {"a": torch.randn(3, 4), "b": torch.arange(5), "c": torch.tensor(7.0), "d": torch.randn(4, 3).T}
    save_checkpoint(tmp_path / "c", tensors, {"step": 3})
    back, state = load_checkpoint(tmp_path / "c")
    assert state == {"step": 3} and all(torch.equal(tensors[k], back[k]) for k in tensors)


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "checkpoint.json"])
def test_a_flipped_byte_in_a_checkpoint_is_refused(tmp_path, name):
    path = save_checkpoint(tmp_path / "c", {"a": torch.randn(64)}, {"step": 3}) / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "c")


def test_a_kill_in_the_middle_of_saving_leaves_only_whole_checkpoints(tmp_path):
    """A process that saves without end is killed at different moments; whatever it leaves under a final name loads."""
    code = (
        "import sys, torch\nfrom foundry.utils.checkpoint import save_checkpoint\ni = 0\n"
        "while True:\n    i += 1\n    save_checkpoint(sys.argv[1] + f'/step-{i:08d}', {'a': torch.full((200_000,), float(i))}, {'step': i})\n"
        "    print(i, flush=True)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    for _ in range(5):
        child.stdout.readline()
    time.sleep(0.013)
    child.send_signal(signal.SIGKILL)
    child.wait()
    folders = sorted(tmp_path.glob("step-*"))
    assert len(folders) >= 5
    for folder in folders:
        tensors, state = load_checkpoint(folder)
        assert torch.all(tensors["a"] == state["step"])
