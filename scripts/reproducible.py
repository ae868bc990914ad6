"""Is every out the same bytes when the project is built again? Two clean clones of the last commit, built under other surroundings and compared.

    python -m scripts.reproducible [--keep FOLDER] [STAGE ...]      (make reproducible)

The clones lie in other folders and run under another locale, time zone, PYTHONHASHSEED, umask and number of workers; each has a cache of its own, so every
stage runs. What is not in git but is an input comes along: `corpus/` and the store of downloads, which is checked against its hashes. Prints one line and exits
with 0 when every out is equal byte for byte; else with 1, naming the first stage whose inputs are the same and whose outs are not, its file and the offset.
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


class Failed(Exception):
    """The check itself could not be done; the message says why."""


@dataclass(frozen=True)
class Side:
    """The surroundings of one build. `workers` replaces `runtime.workers` of params.yaml."""

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
    """The first byte in which an out differs. A file that one side lacks differs at 0."""

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
    """A clean clone of the last commit, with the inputs that git does not hold, and without the record of former runs."""
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
        Failed: with the last lines of what was printed.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    mine = {k: v for k, v in os.environ.items() if not k.startswith("DVC_") and k != "MLFLOW_TRACKING_URI"}
    env = {**mine, "PATH": path, "DVC_NO_ANALYTICS": "1", "FOUNDRY_PROGRESS": "0", **side.env}
    _call([sys.executable, "-m", "dvc", "repro", "--force", *stages], folder, env, side.umask)


def _call(command: list[str], cwd: Path, env: dict[str, str] | None = None, umask: int = -1) -> None:
    done = subprocess.run(command, cwd=cwd, env=env, umask=umask, capture_output=True, text=True, errors="replace")
    if done.returncode:
        lines = (done.stdout + done.stderr).splitlines()[-20:]
        raise Failed(f"`{' '.join(command[-4:])}` in {cwd} ended with {done.returncode}:\n  " + "\n  ".join(lines))


def read_lock(folder: Path) -> dict[str, Any]:
    return yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]


def own_differences(one: Path, other: Path) -> Iterator[str]:
    """Stages whose outs differ though what they read is the same, in the order of dvc.yaml."""
    a, b = read_lock(one), read_lock(other)
    order = list(yaml.safe_load((one / "dvc.yaml").read_text(encoding="utf-8"))["stages"])
    for stage in sorted(a, key=order.index):
        same_inputs = all(a[stage].get(k) == b[stage].get(k) for k in ("cmd", "deps", "params"))
        if same_inputs and a[stage].get("outs") != b[stage].get("outs"):
            yield stage


def first_difference(one: Path, other: Path, stage: str) -> Difference:
    """The first byte in which an out of a stage differs, its files in the order of their names."""
    for out in read_lock(one)[stage]["outs"]:
        path = out["path"]
        for name in _files(one / path) | _files(other / path):
            found = _compare(one / path / name, other / path / name)
            if found:
                file = f"{path}/{name}" if name != "." else path
                return Difference(stage, file, *found)
    raise Failed(f"dvc.lock says that stage {stage} differs, but its files are equal")


def _files(path: Path) -> dict[str, None]:
    """Relative names of the files of an out, sorted; "." when it is a file itself."""
    if path.is_file():
        return {".": None}
    return dict.fromkeys(sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()))


def _compare(one: Path, other: Path) -> tuple[int, bytes, bytes] | None:
    """(offset, 16 bytes of each from there) of the first difference of two files; None when they are equal."""
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
    """Builds both sides below `base` and prints the verdict; True when all outs are equal."""
    folders = []
    for side in SIDES:
        folder = clone(root, side, base)
        told = ", ".join(f"{k}={v}" for k, v in side.env.items())
        print(f"building in {folder} ({told}, {side.workers} workers)", flush=True)
        build(folder, side, stages)
        folders.append(folder)
    one, other = folders
    differing = list(own_differences(one, other))
    if not differing:
        outs = [o for s in read_lock(one).values() for o in s.get("outs", [])]
        if read_lock(one) != read_lock(other):
            raise Failed("the outs are equal, but the two dvc.lock are not: a command or a parameter differs")
        print(f"reproducible: {len(outs)} outs of {len(read_lock(one))} stages are the same bytes")
        return True
    print(f"not reproducible. {first_difference(one, other, differing[0])}")
    if differing[1:]:
        print(f"of the same inputs differ also: {', '.join(differing[1:])}")
    return False


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("stages", nargs="*", metavar="STAGE", help="build these and what they need (default: all)")
    p.add_argument("--keep", type=Path, metavar="FOLDER", help="build there and leave it, to look into the differences")
    args = p.parse_args()
    root = Path.cwd()
    dirty = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True)
    if dirty.returncode:
        raise SystemExit(f"error: {root} is no git repository: {dirty.stderr.strip()}")
    if dirty.stdout.strip():
        print(f"note: {len(dirty.stdout.splitlines())} changed files are not committed and are not checked")
    try:
        if args.keep:
            args.keep.mkdir(parents=True)
            raise SystemExit(0 if check(root, args.keep.resolve(), args.stages) else 1)
        with tempfile.TemporaryDirectory(prefix="reproducible-") as tmp:
            raise SystemExit(0 if check(root, Path(tmp), args.stages) else 1)
    except (Failed, FileExistsError) as e:
        print(f"error: {e}", file=sys.stderr)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
