"""The stages evaluate and export of two revisions, on the model that was built in this folder.

    python -m benchmarks.stages [--stage evaluate] [--before e73f9c5] [--rounds 3]

A turn runs a stage as DVC does, in a worktree of the revision with a copy of data/, artifacts/ and reports/, so with
everything that the stage does in the end, registration included. `cold` begins without `.foundry/`, `warm` with what
the turn before has kept there. All sides have to write the same bytes.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.rounds import SECONDS, add_rounds, take_turns

BUILT = ("data", "artifacts", "reports")
REPORTS = ("evaluate.json", "report.html", "samples.md", "loss.png", "calibration.csv", "position.csv")
OUTS = {"evaluate": ["artifacts/evaluation", *(f"reports/{r}" for r in REPORTS)], "export": ["artifacts/export"]}


@contextlib.contextmanager
def worktree(revision: str, folder: Path) -> Iterator[Path]:
    """A worktree with a copy of what was built here."""
    subprocess.run(["git", "worktree", "add", "-q", "--detach", folder, revision], check=True)
    try:
        for name in BUILT:
            shutil.copytree(name, folder / name, dirs_exist_ok=True)
        yield folder
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", folder], check=True)


def turn(folder: Path, stage: str, cold: bool) -> float:
    """Seconds of the stage, whose outs are not there when it begins."""
    for out in (folder / o for o in OUTS[stage]):
        shutil.rmtree(out) if out.is_dir() else out.unlink()
    if cold:
        shutil.rmtree(folder / ".foundry", ignore_errors=True)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - begin


def different(a: Path, b: Path, stage: str) -> list[str]:
    """Files of the stage's outs that are not the same bytes in two worktrees."""
    outs = [top / out for top in (a, b) for out in OUTS[stage]]
    files = {p.relative_to(a if p.is_relative_to(a) else b) for o in outs for p in (o, *o.rglob("*")) if p.is_file()}
    _, wrong, missing = filecmp.cmpfiles(a, b, sorted(map(str, files)), shallow=False)
    return wrong + missing


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--stage", choices=OUTS, help="only this one")
    p.add_argument("--before", default="e73f9c5", help="the older revision (default: %(default)s)")
    add_rounds(p, 3)
    args = p.parse_args()
    with (
        tempfile.TemporaryDirectory() as tmp,
        worktree(args.before, Path(tmp) / "before") as before,
        worktree("HEAD", Path(tmp) / "now") as now,
    ):
        for stage in [args.stage] if args.stage else OUTS:
            sides = {
                f"{args.before}, cold": partial(turn, before, stage, True),
                "now, cold": partial(turn, now, stage, True),
                "now, warm": partial(turn, now, stage, False),
            }
            take_turns(sides, args.rounds, SECONDS).print(stage, base=f"{args.before}, cold")
            if odd := different(before, now, stage):
                raise SystemExit(f"{stage} does not write the same bytes: {', '.join(odd)}")
            print(f"{stage}: all outs are the same bytes")


if __name__ == "__main__":
    main()
