"""The one way to write a file, and to hash its content.

A file appears under its final name only when it is complete: temporary name in the same folder, flush, fsync, rename,
fsync of the folder. A reader therefore sees the old bytes or the new ones, never a part. The same holds for a folder.
Disk-full and permission errors leave no temporary file behind and become a `DiskError` that names the folder, the space
needed and the space left.
"""

from __future__ import annotations

import csv
import ctypes
import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from foundry.config import DiskError, FoundryError
from foundry.utils.log import get_logger

if TYPE_CHECKING:
    import numpy as np
    import torch

REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS)  # errors of a disk that a user can fix


def project_dir() -> Path:
    """The folder of params.yaml and dvc.yaml. DVC passes it to its stages as DVC_ROOT."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state_dir() -> Path:
    """`.foundry/` of the project: everything that outlives a stage or is outside its outs.

    In the worktree of a flow it is a link to that of the project.
    """
    return (project_dir() / ".foundry").resolve()


def fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class _Raw(io.FileIO):
    """A file being written: its disk errors become a `DiskError` that names its folder."""

    def __init__(self, fd: int, path: Path, needed: int | None, mode: str = "wb") -> None:
        super().__init__(fd, mode)
        self._path, self._needed, self._written = path, needed, 0

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        try:
            done = super().write(data)
        except OSError as e:
            raise _disk_error(e, self._path.parent, self._needed or self._written + size) from e
        self._written += done
        return done


def _disk_error(e: OSError, folder: Path, needed: int | None = None) -> OSError | DiskError:
    """Turns an error of a full disk or of missing permissions into a `DiskError`; returns any other error unchanged."""
    if e.errno not in REFUSED:
        return e
    there = next(p for p in (folder, *folder.parents) if p.exists())
    return DiskError(str(folder), e.strerror or os.strerror(e.errno), shutil.disk_usage(there).free, needed)


@contextmanager
def disk_errors(folder: Path, needed: int | None = None, unnamed: bool = True) -> Iterator[None]:
    """Turns the error of a full disk or of missing permissions into a `DiskError`, around a library's write.

    Only errors that concern the folder are translated: those that name a file below it, and those that name no file.
    The block should contain only the call that writes.

    Args:
        needed: bytes that the write needs, if they are known.
        unnamed: whether errors that name no file belong to this write; False if the block also does other things.
    """
    try:
        yield
    except OSError as e:
        if not (unnamed if e.filename is None else _below(e.filename, folder)):
            raise
        if (error := _disk_error(e, folder, needed)) is e:
            raise
        raise error from e


def make_folder(folder: Path) -> None:
    """Creates a folder and the missing ones above it.

    Raises:
        DiskError: if the disk is full or permissions are missing.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise _disk_error(e, folder) from e


def _below(name: str | bytes, folder: Path) -> bool:
    return Path(os.fsdecode(name)).absolute().is_relative_to(folder.absolute())


def _text(raw: _Raw, mode: str) -> IO:
    buffered = io.BufferedWriter(raw)
    return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding="utf-8", newline="\n")


@contextmanager
def open_to_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Opens a file that is not final yet: a growing download (mode `ab`), or a file in a folder of `atomic_dir`.

    Raises:
        DiskError: if the disk is full or permissions are missing.
    """
    path = Path(path)
    with disk_errors(path.parent):
        fd = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_APPEND if "a" in mode else os.O_TRUNC), 0o644
        )
    with _text(_Raw(fd, path, None, mode.replace("t", "").replace("b", "") + "b"), mode) as f:
        yield f


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb", needed: int | None = None) -> Iterator[IO]:
    """Opens a temporary file that replaces `path` when the block ends without an error (mode `wb` or `w`).

    Args:
        needed: bytes of the complete file, if they are known, for the error of a full disk.

    Raises:
        DiskError: if the disk is full or permissions are missing; the old file is unchanged.
    """
    path = Path(path)
    make_folder(path.parent)
    with disk_errors(path.parent):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with _text(_Raw(fd, path, needed), mode) as f:
            yield f
            f.flush()
            with disk_errors(path.parent, needed):
                os.fsync(f.fileno())
        with disk_errors(path.parent):
            os.chmod(name, 0o644)  # mkstemp makes 0600, but other users of the machine must be able to read results
            os.replace(name, path)
            fsync_dir(path.parent)
    except BaseException as e:
        Path(name).unlink(missing_ok=True)
        _measure(e, path.parent, path.parent, needed)
        raise


def _measure(error: BaseException, within: Path, folder: Path, needed: int | None) -> None:
    """Completes the error of a write `within` a folder, once what was half written is removed.

    Sets the folder, the bytes that are free in it now, and those that the complete write needs.
    """
    if isinstance(error, DiskError) and _below(error.folder, within):
        error.folder, error.free = str(folder), shutil.disk_usage(folder).free
        error.needed = needed or error.needed


@contextmanager
def atomic_dir(path: str | Path, needed: int | None = None) -> Iterator[Path]:
    """Yields a temporary folder that replaces `path` when the block ends without an error.

    At every moment `path` is the old folder or the new one: the two are exchanged by one system call (renameat2, Linux
    3.15 and most of its file systems). Where that call is missing, the old folder is moved aside for a moment; a
    process that is killed in that moment leaves it as `.NAME.old`, and the next call, or `recover`, puts it back. What
    earlier killed calls left half written is removed first.

    Args:
        needed: bytes of the complete folder, if they are known, for the error of a full disk.

    Raises:
        DiskError: if the disk is full or permissions are missing; the old folder is unchanged.
    """
    path = Path(path)
    make_folder(path.parent)
    with disk_errors(path.parent):
        recover(path)
        tmp, lock = _temporary(path)
    try:
        with disk_errors(tmp, needed, unnamed=False):
            yield tmp
        with disk_errors(path.parent, needed):
            _flush(tmp)
            _replace(tmp, path)
            fsync_dir(path.parent)
    except BaseException as e:
        shutil.rmtree(tmp, ignore_errors=True)
        _measure(e, tmp, path.parent, needed)
        raise
    finally:
        os.close(lock)


def recover(path: Path) -> None:
    """Repairs what a killed `atomic_dir` left of `path`.

    The old folder gets its name back if there is no new one. Half-written folders are removed, except those that a
    living process is writing: it holds a lock on them.
    """
    aside = path.with_name(f".{path.name}.old")
    if aside.exists():
        if path.exists():
            shutil.rmtree(aside)
        else:
            os.rename(aside, path)
    for rest in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        try:
            lock = _locked(rest)
        except FileNotFoundError:  # its writer has just finished
            continue
        if lock is None:
            continue
        shutil.rmtree(rest, ignore_errors=True)
        os.close(lock)


def remove_dir(path: Path) -> None:
    """Removes a folder so that a reader finds all of it or nothing; `recover` removes what a kill leaves of it."""
    rest, lock = _temporary(path)
    try:
        os.rename(path, rest)
        shutil.rmtree(rest)
    finally:
        os.close(lock)


def _temporary(path: Path) -> tuple[Path, int]:
    """A new folder beside `path`, and a descriptor with a lock on it, which shows that its writer lives."""
    while True:
        tmp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            lock = _locked(tmp)
        except FileNotFoundError:
            continue  # before it was locked, another process removed it as that of a dead writer
        if lock is None:
            continue
        if tmp.is_dir():
            return tmp, lock
        os.close(lock)


def _locked(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; None if another process holds the lock."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def _flush(folder: Path) -> None:
    """Makes everything below readable for others, whatever the umask, and writes it to the disk, contents first."""
    for place, _, names in os.walk(folder, topdown=False):
        for name in names:
            file = os.path.join(place, name)
            if os.path.islink(file):
                continue
            os.chmod(file, os.stat(file).st_mode | 0o644)
            fsync_dir(Path(file))
        os.chmod(place, 0o755)
        fsync_dir(Path(place))


def _replace(new: Path, path: Path) -> None:
    """Replaces the folder at `path`, if there is one, by a new one."""
    if not path.exists():
        os.rename(new, path)
        return
    try:
        _exchange(new, path)
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            raise
        aside = path.with_name(f".{path.name}.old")
        os.rename(path, aside)
        try:
            os.rename(new, path)
        except BaseException:
            os.rename(aside, path)
            raise
        new = aside
    try:
        shutil.rmtree(new)
    except OSError as e:  # the new folder is in place: the write is complete
        get_logger().warning("the old content of %s could not be removed and is left in %s: %s", path, new, e)


_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def _exchange(a: Path, b: Path) -> None:
    """Exchanges two names in one system call.

    Raises:
        OSError: ENOSYS, EINVAL or ENOTSUP if the system or the file system cannot do that.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if call(_AT_FDCWD, os.fsencode(a), _AT_FDCWD, os.fsencode(b), _RENAME_EXCHANGE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(a), None, str(b))


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path, "w") as f:
        f.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON; the same value gives the same bytes, and NaN is an error."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_rows(path: str | Path, rows: Sequence[dict[str, Any]]) -> None:
    """Writes rows with the same keys as CSV, atomically."""
    with atomic_write(path, "w") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_array(path: str | Path, array: np.ndarray) -> None:
    """Writes a NumPy array (`.npy`).

    It is serialised in memory first: NumPy writes to a file by C code, whose error of a full disk has no number.
    """
    import numpy

    data = io.BytesIO()
    numpy.save(data, array)
    with atomic_write(path, needed=data.getbuffer().nbytes) as f:
        f.write(data.getbuffer())


def write_tensors(path: str | Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors on the CPU as safetensors, without a copy: the library's `save` builds the file in memory.

    Raises:
        DiskError: if the disk is full or permissions are missing; the old file is unchanged.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    path, needed = Path(path), sum(t.nbytes for t in tensors.values())
    make_folder(path.parent)
    new = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with disk_errors(path.parent, needed):
            with open(new, "wb"):  # here the error of a missing permission has a number
                pass
            try:
                save_file(tensors, new, metadata)
            except SafetensorError as e:  # it has no number
                if shutil.disk_usage(path.parent).free >= needed:
                    raise
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from e
            os.chmod(new, 0o644)  # save_file makes 0600
            fsync_dir(new)
            os.replace(new, path)
            fsync_dir(path.parent)
    except BaseException as e:
        new.unlink(missing_ok=True)
        _measure(e, path.parent, path.parent, needed)
        raise


def read_json(path: str | Path, what: str, error: Callable[[str], Exception] = FoundryError) -> Any:
    """Reads a JSON file.

    Args:
        what: what the file should contain, for the error.

    Raises:
        error: if the file is missing or is not readable JSON.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        value = json.loads(text)
        if "\\ud" in text or "\\uD" in text:  # half a surrogate pair can neither be printed nor written
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except FileNotFoundError:
        raise error(f"{path} does not exist: {what}") from None
    except OSError as e:  # a folder instead of a file, a missing permission
        raise error(f"{path} cannot be read ({e.strerror}): {what}") from None
    except (ValueError, RecursionError) as e:
        raise error(f"{path} is not readable JSON ({e}): {what}") from None


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def sha256_tree(folder: str | Path) -> str:
    """SHA-256 of a folder: of the sorted list of (relative path, hash of the file)."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return sha256_json([[p.relative_to(folder).as_posix(), sha256_file(p)] for p in files])
