"""The one way to write a file, and to name its content.

A file appears under its final name only when it is whole: temporary name in the same folder, flush, fsync, rename, fsync of
the folder. A reader therefore sees the old bytes or the new ones, never a part. The same for a folder. Disk-full and
permission errors leave no temporary file behind and become a message that names the folder and the space left.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from foundry.config import FoundryError


def project_dir() -> Path:
    """The folder of params.yaml and dvc.yaml. DVC names it to its stages."""
    return Path(os.environ.get("DVC_ROOT") or Path.cwd()).resolve()


def state_dir() -> Path:
    """`.foundry/` of the project: everything that outlives or escapes a stage. In a worktree that a flow made it is a link to the project's own."""
    return (project_dir() / ".foundry").resolve()


def fsync_dir(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Opens a temporary file that replaces `path` when the block ends without an error (mode `wb` or `w`)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    with told_space(path.parent):
        fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with open(fd, mode, **text) as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            os.chmod(name, 0o644)  # mkstemp makes 0600: other users of the machine must be able to read results
            os.replace(name, path)
            fsync_dir(path.parent)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise


@contextmanager
def atomic_dir(path: str | Path) -> Iterator[Path]:
    """Gives a temporary folder that takes the place of `path` when the block ends without an error."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with told_space(path.parent):
        tmp = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
        try:
            yield tmp
            os.chmod(tmp, 0o755)
            for file in sorted(p for p in tmp.rglob("*") if p.is_file()):
                with open(file, "rb") as f:
                    os.fsync(f.fileno())
            for folder in [*(p for p in tmp.rglob("*") if p.is_dir()), tmp]:
                fsync_dir(folder)
            if path.exists():
                shutil.rmtree(path)
            os.replace(tmp, path)
            fsync_dir(path.parent)
        except BaseException:
            shutil.rmtree(tmp, ignore_errors=True)
            raise


@contextmanager
def told_space(folder: Path) -> Iterator[None]:
    """Turns `No space left on device` and refused permissions into an error that a user can act on."""
    try:
        yield
    except OSError as e:
        if e.errno not in (28, 122, 13, 30):  # ENOSPC, EDQUOT, EACCES, EROFS
            raise
        free = shutil.disk_usage(folder).free
        raise FoundryError(
            f"cannot write in {folder}: {e.strerror}; {free / 2**20:,.0f} MiB are free there. "
            "Nothing was left half written; make room or mend the permissions, then run the same command again"
        ) from e


def write_text(path: str | Path, text: str) -> None:
    with atomic_write(path, "w") as f:
        f.write(text)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON that is the same bytes for the same value; NaN is refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: str | Path, what: str, error: Callable[[str], Exception] = FoundryError) -> Any:
    """Reads JSON or raises `error` with what was expected there."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist: {what}") from None
    except (ValueError, UnicodeDecodeError) as e:
        raise error(f"{path} is not readable JSON ({e}): {what}") from None


def sha256_file(path: str | Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """Hash of a JSON value in its canonical form (sorted keys, no spaces)."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    ).hexdigest()


def sha256_tree(folder: str | Path) -> str:
    """Hash of a folder: of the sorted list of (relative path, hash of the file)."""
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return sha256_json([[p.relative_to(folder).as_posix(), sha256_file(p)] for p in files])
