"""A `dvc repro` with nothing to do, against the same graph with empty stages: what DVC itself needs.

    python -m benchmarks.noop [--rounds 5]      (in a project whose pipeline is up to date)

The other side is a repository of seven stages with the same numbers of dependencies and outputs, whose commands only
`touch` their outputs.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

from benchmarks.rounds import SECONDS, add_rounds, take_turns

DVC = [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "-q"]


def make_toy(folder: Path) -> None:
    """Makes stages in the shape of our graph: every dependency and output is a small file."""
    stages = yaml.safe_load(Path("dvc.yaml").read_text(encoding="utf-8"))["stages"]

    def flat(path: str) -> str:
        return path.replace("/", "__")

    toy, made = {}, set()
    for name, stage in stages.items():
        outs = [
            flat(o if isinstance(o, str) else next(iter(o)))
            for kind in ("outs", "metrics", "plots")
            for o in stage.get(kind, [])
        ]
        deps = [flat(d) for d in stage["deps"]]
        for dep in set(deps) - made:
            (folder / dep).write_text(dep)
        made |= set(outs)
        toy[name] = {"cmd": f"touch {' '.join(outs)}", "deps": deps, "outs": outs}
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": toy}, sort_keys=False))
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"], DVC):
        subprocess.run(command, cwd=folder, check=True)


def seconds(folder: str | Path) -> float:
    begin = time.perf_counter()
    subprocess.run(DVC, cwd=folder, check=True)
    return time.perf_counter() - begin


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_rounds(p, 5)
    rounds = p.parse_args().rounds
    status = subprocess.run([sys.executable, "-m", "dvc", "status", "-q"])
    if status.returncode:
        raise SystemExit("the pipeline is not up to date: run `dvc repro` first")
    with tempfile.TemporaryDirectory() as tmp:
        make_toy(Path(tmp))
        sides = {"this project": lambda: seconds("."), "the same graph, empty stages": lambda: seconds(tmp)}
        done = take_turns(sides, rounds, SECONDS)
    done.print("`dvc repro` with nothing to do", base="the same graph, empty stages")


if __name__ == "__main__":
    main()
