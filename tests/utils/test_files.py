"""Files appear complete or not at all, however a process ends."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from kills import every_kill

from foundry.config import CheckpointError, DiskError
from foundry.utils import files
from foundry.utils.checkpoint import load_checkpoint, save_checkpoint
from foundry.utils.files import atomic_dir, atomic_write, open_to_write, recover, sha256_tree, write_json


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


def test_a_full_disk_is_told_with_the_room_left_and_leaves_nothing(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with (
        pytest.raises(DiskError, match=r"No space left.*MiB are free.*run the same command again"),
        atomic_write(tmp_path / "a") as f,
    ):
        f.write(b"part")
    assert os.listdir(tmp_path) == []


def test_a_device_that_takes_nothing_is_reported_with_what_the_write_needs():
    """/dev/full refuses every write as a full disk does."""
    with (
        pytest.raises(DiskError, match="cannot write in /dev: No space left on device") as e,
        open_to_write("/dev/full") as f,
    ):
        f.write(b"x" * 100_000)
    assert e.value.folder == "/dev" and e.value.needed >= 100_000
    with pytest.raises(DiskError, match="No space left"), open_to_write("/dev/full", "w") as f:
        f.write("x")


@pytest.mark.parametrize("writer", [atomic_write, atomic_dir])
@pytest.mark.parametrize("number", [errno.EACCES, errno.ENOSPC, errno.EROFS])
def test_an_error_of_another_file_is_not_reported_as_one_of_the_target(tmp_path, writer, number):
    """What the caller reads, or writes elsewhere, inside the block keeps its own error."""
    with pytest.raises(OSError, match="elsewhere") as e, writer(tmp_path / "a"):
        raise OSError(number, os.strerror(number), "/somewhere/elsewhere")
    assert e.value.errno == number and os.listdir(tmp_path) == []
    with pytest.raises(OSError), writer(tmp_path / "a"):
        raise OSError(number, os.strerror(number))
    assert os.listdir(tmp_path) == []


def test_a_file_of_the_folder_that_is_refused_is_reported(tmp_path):
    with pytest.raises(DiskError, match="Permission denied"), atomic_dir(tmp_path / "d") as tmp:
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(tmp / "inner" / "x"))
    assert os.listdir(tmp_path) == []


def holds(path):
    """Content of a file, or of the one file of a folder."""
    return (path / "x" if path.is_dir() else path).read_text()


def write_file(path, text):
    with atomic_write(path, "w") as f:
        f.write(text)


def write_folder(path, text):
    with atomic_dir(path) as tmp:
        (tmp / "inner").mkdir()
        (tmp / "inner" / "y").write_text(text)
        (tmp / "x").write_text(text)


WRITERS = {"file": write_file, "folder": write_folder}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_kill_at_any_system_call_leaves_the_old_or_the_new_one(tmp_path, kind):
    path, write, seen = tmp_path / "a", WRITERS[kind], set()

    def check(place):
        seen.add(holds(path))
        assert holds(path) in ("old", "new"), place
        write(path, "next")
        assert holds(path) == "next", place
        if kind == "folder":  # the next call removes what the killed one left
            assert os.listdir(tmp_path) == ["a"], place

    every_kill(lambda: write(path, "new"), check, prepare=lambda: write(path, "old"))
    assert seen == {"old", "new"}


def test_where_two_names_cannot_be_exchanged_the_next_call_finds_the_old_folder_again(tmp_path, monkeypatch):
    """Some network file systems lack the call; the old folder is then away for a moment, never lost."""

    def lacking(*args):
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(files, "_exchange", lacking)
    path, seen = tmp_path / "a", set()

    def check(place):
        seen.add(path.exists())
        recover(path)
        assert holds(path) in ("old", "new") and os.listdir(tmp_path) == ["a"], place

    every_kill(lambda: write_folder(path, "new"), check, prepare=lambda: write_folder(path, "old"))
    assert seen == {True, False}


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("kind", WRITERS)
def test_an_error_of_any_call_of_the_system_leaves_the_old_or_the_new_one(tmp_path, monkeypatch, kind, exchange):
    """Each call that changes the disk fails once: while writing, naming, or removing the old one."""
    path, write = tmp_path / "a", WRITERS[kind]
    names = ("open", "fsync", "chmod", "rename", "replace", "rmdir", "unlink", "mkdir")
    places = 0
    if not exchange:

        def lacking(*args):
            raise OSError(errno.ENOSYS, "")

        monkeypatch.setattr(files, "_exchange", lacking)
    for name in names:
        for n in range(20):
            write(path, "old")
            calls, real = [], getattr(os, name)

            def fails(*args, n=n, calls=calls, real=real, **options):
                calls.append(args)
                if len(calls) - 1 == n:
                    raise OSError(errno.EIO, os.strerror(errno.EIO))
                return real(*args, **options)

            with monkeypatch.context() as m:
                m.setattr(os, name, fails)
                try:
                    write(path, "new")
                    failed = False
                except OSError as e:
                    failed = e.errno == errno.EIO
                    assert failed
            assert holds(path) in ("old", "new") and (failed or holds(path) == "new"), (name, n)
            if len(calls) <= n:
                break
            places += 1
    assert places > 5


def test_a_folder_that_a_living_process_writes_is_not_removed(tmp_path):
    path = tmp_path / "a"
    with atomic_dir(path) as first:
        (first / "x").write_text("first")
        write_folder(path, "second")
        assert first.is_dir() and holds(path) == "second"
    assert holds(path) == "first" and os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_written_files_can_be_read_by_other_users(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_json(tmp_path / "a.json", {"x": 1})
        save_checkpoint(tmp_path / "c", {"t": torch.ones(2)}, {})
        write_folder(tmp_path / "d", "x")
    finally:
        os.umask(before)
    assert all(p.stat().st_mode & 0o044 == 0o044 for p in tmp_path.rglob("*") if p.is_file())
    assert all(p.stat().st_mode & 0o055 == 0o055 for p in tmp_path.rglob("*") if p.is_dir())


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


@pytest.mark.parametrize("name", ["part-00000-00000.safetensors", "state.json", "checkpoint.json"])
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
        "while True:\n    i += 1\n    tensors = {'a': torch.full((200_000,), float(i))}\n"
        "    save_checkpoint(sys.argv[1] + f'/step-{i:08d}', tensors, {'step': i})\n"
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
