"""Repairs the files of DVC that a kill or a power cut leaves damaged.

DVC 3.67 writes `dvc.lock` and `.dvc/tmp/rwlock` in place: if it is killed while it writes, it leaves an empty or cut
file, and every later command of DVC refuses to work until somebody removes it. If it is killed between the two steps of
a write to its run cache, it leaves an empty folder, and every later `dvc repro` of that stage ends in an error. Each
file is repaired under the lock that DVC itself holds while it writes the file, so that no living DVC is writing it.
Objects of the cache and DVC's databases need no repair: DVC finds and replaces a damaged object by its hash, and writes
its databases through SQLite.

`tests/utils/test_dvc_files.py` kills DVC at each of its writes.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import yaml

from foundry.config import ConfigError
from foundry.config.pipelines import LOCKS, PIPELINES, path_of
from foundry.utils.locks import locked_if_free

RWLOCK = Path(".dvc/tmp/rwlock")
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the loader in C is ten times faster; not every build has it
TEMPORARY = re.compile(r"\.[\w-]{22}\.tmp")
FILLING = 3.0  # seconds; DVC takes milliseconds from making a folder of its run cache to writing the file in it
SLACK = 2.0  # seconds by which the clock of the file system may differ from the start time of a process


def repair_dvc(root: str | Path = ".") -> list[str]:
    """Repairs each `dvc.lock`, the outs' folders, DVC's list of readers and writers, and its run cache.

    A file that a living DVC may be writing is left as it is.

    Returns:
        One sentence for each repair.

    Raises:
        ConfigError: if a `dvc.lock` contains git's conflict markers; nothing is changed.
    """
    root = Path(root)
    if not (root / ".dvc").is_dir():
        return []
    done = [
        *(_guarded(root / ".dvc/tmp/lock", partial(_repair_lock, root, name)) for name in LOCKS),
        _guarded(root / ".dvc/tmp/lock", lambda: _remove_temporary(root)),
        _guarded(root / ".dvc/tmp/rwlock.lock", lambda: _repair_rwlock(root / RWLOCK)),
        _repair_run_cache(_cache(root) / "runs"),
    ]
    return [line for line in done if line]


def _guarded(guard: Path, repair: Callable[[], str]) -> str:
    with locked_if_free(guard, note=None) as free:  # if it is not free, a living DVC is at work
        return repair() if free else ""


def _repair_lock(root: Path, name: str) -> str:
    """Replaces an empty or cut lock by git's version, or removes it: DVC's run cache restores the outs."""
    path = root / name
    if not path.exists():
        return ""
    data = path.read_bytes()
    if is_complete(data):
        return ""
    for mark in (b"<<<<<<< ", b">>>>>>> "):
        if data.startswith(mark) or b"\n" + mark in data:
            raise ConfigError(
                f"{path} contains git's conflict markers: take one side (`git checkout --ours {name}` or "
                "`--theirs`), then `dvc repro`"
            )
    kept = ""
    if data.strip(b"\0\n "):
        copy = root / ".foundry" / f"{name}.damaged"
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
        kept = f"; what was left of it is in {copy.relative_to(root)}"
    committed = _committed(root, name)
    if not is_complete(committed):
        path.unlink()
        return f"removed {name}, which a killed DVC left cut off{kept}: DVC's run cache restores what was built"
    new = path.with_name(".dvc.lock.tmp")
    with open(new, "wb") as f:
        f.write(committed)
        f.flush()
        os.fsync(f.fileno())
    os.replace(new, path)
    return (
        f"replaced {name}, which a killed DVC left cut off, by git's version{kept}: DVC's run cache restores the rest"
    )


def is_complete(data: bytes) -> bool:
    """Whether these bytes are a complete `dvc.lock`: DVC ends it with a newline, and accepts its structure."""
    if not data.endswith(b"\n"):
        return False
    try:
        lock = yaml.load(data.decode(), Loader=LOADER)
    except (ValueError, yaml.YAMLError):
        return False
    if not isinstance(lock, dict) or "schema" not in lock:
        return False
    stages = lock.get("stages", {})
    return isinstance(stages, dict) and all(_is_complete_stage(s) for s in stages.values())


def _is_complete_stage(stage: Any) -> bool:
    if not isinstance(stage, dict) or not stage.get("cmd"):
        return False
    files = [stage.get(kind, []) for kind in ("deps", "outs")]
    if not all(isinstance(f, list) and all(isinstance(x, dict) and x.get("path") for x in f) for f in files):
        return False
    params = stage.get("params", {})
    return isinstance(params, dict) and all(isinstance(p, dict) for p in params.values())


def _committed(root: Path, name: str) -> bytes:
    """The bytes of a lock in HEAD; empty if there is none."""
    done = subprocess.run(["git", "-C", str(root), "show", f"HEAD:./{name}"], capture_output=True)
    return b"" if done.returncode else done.stdout


def _remove_temporary(root: Path) -> str:
    """Removes incomplete copies beside the outs, which DVC makes under a random name when it checks out."""
    try:
        files = [root / name for name in PIPELINES.values() if (root / name).exists()]
        stages = [s for f in files for s in yaml.load(f.read_text(encoding="utf-8"), LOADER)["stages"].values()]
        outs = [o for s in stages for kind in ("outs", "metrics", "plots") for o in s.get(kind, [])]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError):
        return ""  # DVC reports what is wrong with it
    folders = {(root / path_of(o)).parent for o in outs}
    left = [p for folder in folders if folder.is_dir() for p in folder.iterdir() if TEMPORARY.fullmatch(p.name)]
    for path in left:
        path.unlink(missing_ok=True)
    return f"removed {len(left)} temporary files that a killed DVC left beside its outs" if left else ""


def _cache(root: Path) -> Path:
    """The folder of DVC's cache: `cache.dir` of its settings, relative to `.dvc/`; by default `.dvc/cache`."""
    settings = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        settings.read([root / ".dvc/config", root / ".dvc/config.local"], encoding="utf-8")
        known = settings.get("cache", "dir", fallback="cache")
    except configparser.Error:  # DVC reports what is wrong with it
        known = "cache"
    return root / ".dvc" / known.strip("'\"")


def _repair_run_cache(runs: Path) -> str:
    """Removes empty folders that no other process is filling: worktrees share the cache without a common lock."""
    empty = [p for p in runs.glob("??/*") if p.is_dir() and not any(p.iterdir())]
    if not empty:
        return ""
    time.sleep(FILLING)
    removed = 0
    for path in empty:
        try:
            path.rmdir()
            removed += 1
        except OSError:  # it was filled, or removed by another process
            continue
    return f"removed {removed} empty folders that a killed DVC left in its run cache" if removed else ""


def _repair_rwlock(path: Path) -> str:
    """Removes a list that is cut off, and entries of processes that have ended.

    DVC itself mistakes a zombie, and a process that got the same number after a restart of the machine, for the process
    that it recorded.
    """
    if not path.exists():
        return ""
    written = path.stat().st_mtime
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        path.unlink()
        return f"removed {RWLOCK}, which a killed DVC left cut off"
    living = {
        "read": {
            p: [i for i in infos if _is_its_process(i["pid"], written)] for p, infos in known.get("read", {}).items()
        },
        "write": {p: info for p, info in known.get("write", {}).items() if _is_its_process(info["pid"], written)},
    }
    living["read"] = {p: infos for p, infos in living["read"].items() if infos}
    if living == {"read": {}, "write": {}, **known}:
        return ""
    path.write_text(json.dumps(living), encoding="utf-8")
    return f"removed entries of processes that have ended from {RWLOCK}"


def _is_its_process(pid: int, written: float) -> bool:
    """Whether the process lives and was started before the list was written."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and process.create_time() <= written + SLACK
    except psutil.NoSuchProcess:
        return False
