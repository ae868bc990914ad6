"""Checks that a build is reproducible: builds two clean clones of the last commit in different environments, compares.

    python -m scripts.reproducible [--keep FOLDER] [STAGE ...]      (make reproducible)

The clones differ in folder, locale, time zone, PYTHONHASHSEED, umask and number of workers; each has its own cache, so
that every stage runs. Inputs that are not in git are copied: `corpus/` and the store of downloads, which is checked
against its hashes. Exits with 0 if all outputs are equal byte for byte; otherwise with 1, naming the first stage whose
inputs are the same and whose outputs are not, its file and the offset.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

INPUTS = ("corpus", ".foundry/downloads")
CHUNK = 1 << 20  # bytes


class CheckFailed(Exception):
    """The check itself could not be done; the message says why."""


@dataclass(frozen=True)
class Side:
    """The environment of one build. `workers` replaces `runtime.workers` of params.yaml."""

    folder: str
    workers: int
    umask: int
    env: dict[str, str] = field(default_factory=dict)


SIDES = (
    Side("one", 1, 0o022, {"LC_ALL": "C.UTF-8", "TZ": "UTC", "PYTHONHASHSEED": "1"}),
    Side("the other 二", 3, 0o077, {"LC_ALL": "C", "TZ": "Asia/Kathmandu", "PYTHONHASHSEED": "4321"}),
)


@dataclass(frozen=True)
class Difference:
    """The first byte in which an output differs. A file that only one side has differs at 0."""

    stage: str
    file: str
    offset: int
    one: bytes
    other: bytes

    def __str__(self) -> str:
        return (
            f"stage {self.stage}, file {self.file}, offset {self.offset:,}: {self.one!r} in the first build, "
            f"{self.other!r} in the second"
        )


def clone(root: Path, side: Side, base: Path) -> Path:
    """A clean clone of the last commit, with the inputs that are not in git, without the record of earlier builds."""
    folder = base / side.folder
    _call(["git", "clone", "--quiet", "--no-hardlinks", str(root), str(folder)], root)
    for name in INPUTS:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, dirs_exist_ok=True)
    (folder / "dvc.lock").unlink(missing_ok=True)
    params = folder / "params.yaml"
    if params.exists():
        text = re.sub(r"(?m)^(\s+workers:\s*)\d+", rf"\g<1>{side.workers}", params.read_text(encoding="utf-8"))
        text = re.sub(r"(?m)^(\s+tracking:\s*)true", r"\g<1>false", text)  # a check registers no model
        params.write_text(text, encoding="utf-8")
    return folder


def build(folder: Path, side: Side, stages: list[str]) -> None:
    """Runs every stage.

    Raises:
        CheckFailed: with the last lines that were printed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mine = {k: v for k, v in os.environ.items() if not k.startswith("DVC_") and k != "MLFLOW_TRACKING_URI"}
    env = {**mine, "PATH": path, "DVC_NO_ANALYTICS": "1", "FOUNDRY_PROGRESS": "0", **side.env}
    _call([sys.executable, "-m", "dvc", "repro", "--force", *stages], folder, env, side.umask)


def _call(command: list[str], cwd: Path, env: dict[str, str] | None = None, umask: int = -1) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, umask=umask, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()[-20:]
        raise CheckFailed(f"`{' '.join(command[-4:])}` in {cwd} ended with {done.returncode}:\n  " + "\n  ".join(lines))


def read_lock(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def own_differences(one: Path, other: Path) -> Iterator[str]:
    """Stages whose outputs differ although their inputs are the same, in the order of dvc.yaml."""
    a, b = read_lock(one), read_lock(other)
    order = list(yaml.safe_load((one / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    for stage in sorted(a, key=order.index):
        same_inputs = all(a[stage].get(k) == b[stage].get(k) for k in ("cmd", "deps", "params"))
        if same_inputs and a[stage].get("outs") != b[stage].get("outs"):
            yield stage


def first_difference(one: Path, other: Path, stage: str) -> Difference:
    """The first byte in which an output of a stage differs; its files are compared in the order of their names."""
    for out in read_lock(one)[stage]["outs"]:
        path = out["path"]
        for name in _files(one / path) | _files(other / path):
            found = _compare(one / path / name, other / path / name)
            if found:
                file = f"{path}/{name}" if name != "." else path
                return Difference(stage, file, *found)
    raise CheckFailed(f"dvc.lock says that stage {stage} differs, but its files are equal")


def _files(path: Path) -> dict[str, None]:
    """The relative names of an output's files, sorted; "." if it is a file itself."""
    if path.is_file():
        return {".": None}
    return dict.fromkeys(sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()))


def _compare(one: Path, other: Path) -> tuple[int, bytes, bytes] | None:
    """Offset of the first difference of two files, and 16 bytes of each from there; None if they are equal."""
    if not (one.is_file() and other.is_file()):
        there, missing = b"(a file)", b"(no such file)"
        return (0, there, missing) if one.is_file() else (0, missing, there)
    with open(one, "rb") as f, open(other, "rb") as g:
        begin = 0
        while True:
            a, b = f.read(CHUNK), g.read(CHUNK)
            if a != b:
                at = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
                return begin + at, a[at : at + 16], b[at : at + 16]
            if not a:
                return None
            begin += len(a)


def check(root: Path, base: Path, stages: list[str]) -> bool:
    """Builds both sides below `base` and prints the result; whether all outputs are equal."""
    folders = []
    for side in SIDES:
        folder = clone(root, side, base)
        variables = ", ".join(f"{k}={v}" for k, v in side.env.items())
        print(f"building in {folder} ({variables}, {side.workers} workers)", flush=True)
        build(folder, side, stages)
        folders.append(folder)
    one, other = folders
    differing = list(own_differences(one, other))
    if not differing:
        outs = [o for s in read_lock(one).values() for o in s.get("outs", [])]
        if read_lock(one) != read_lock(other):
            raise CheckFailed("the outputs are equal, but the two dvc.lock are not: a command or a parameter differs")
        print(f"reproducible: {len(outs)} outputs of {len(read_lock(one))} stages are the same bytes")
        return True
    print(f"not reproducible. {first_difference(one, other, differing[0])}")
    if differing[1:]:
        print(f"with the same inputs these stages differ, too: {', '.join(differing[1:])}")
    return False


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument(
        "stages", nargs="*", metavar="STAGE", help="build these and the stages that they need (default: all)"
    )
    p.add_argument(
        "--keep", type=Path, metavar="FOLDER", help="build there and keep both builds, to look into the differences"
    )
    args = p.parse_args()
    root = Path.cwd()
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True)
    if dirty.returncode:
        raise SystemExit(f"error: {root} is not a git repository: {dirty.stderr.strip()}")
    if dirty.stdout.strip():
        print(f"note: {len(dirty.stdout.splitlines())} changed files are not committed, and are not checked")
    try:
        if args.keep:
            args.keep.mkdir(parents=True)
            raise SystemExit(0 if check(root, args.keep.resolve(), args.stages) else 1)
        with tempfile.TemporaryDirectory(prefix="reproducible-") as tmp:
            raise SystemExit(0 if check(root, Path(tmp), args.stages) else 1)
    except (CheckFailed, FileExistsError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
