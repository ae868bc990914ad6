"""Peak memory and time of clean, train_tokenizer and shard on growing corpora, made by repetition with mutations.

Memory is that of a stage's whole process tree (Pss: shared pages once, memory-mapped files included), sampled ten times
per second. A round builds every stage from nothing; the rounds are compared by the time of all stages together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import orjson
import psutil
import yaml

from benchmarks.corpus_for_data import mutated
from benchmarks.rounds import SECONDS, add_rounds, take_turns

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("download", "clean", "train_tokenizer", "shard")


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process and its children."""
    total = 0
    for p in [process, *process.children(recursive=True)]:
        try:
            total += p.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


class Usage(NamedTuple):
    """What a stage needed: seconds, and bytes of memory at its peak."""

    seconds: float
    peak: int


def measure_stage(stage: str, folder: Path) -> Usage:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FOUNDRY_PROGRESS": "0"}
    start = time.perf_counter()
    process = psutil.Popen([sys.executable, "-m", f"stages.{stage}"], cwd=folder, env=env, stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, memory_of(process))
        time.sleep(0.1)
    if process.returncode:
        raise SystemExit(f"{stage} failed with exit code {process.returncode}")
    return Usage(time.perf_counter() - start, peak)


def build(project: Path, megabytes: float, workers: int) -> dict[str, Usage]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "corpus").mkdir()
        with open(folder / "corpus/all.jsonl", "wb") as f:
            f.writelines(orjson.dumps({"text": t}) + b"\n" for t in mutated(project, megabytes))
        params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
        params["download"]["sources"] = [{"name": "all", "url": "file:corpus/all.jsonl", "lang": "en"}]
        params["shard"]["weights"] = {}
        params["runtime"]["workers"] = workers
        (folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
        return {stage: measure_stage(stage, folder) for stage in STAGES}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.data memory", description=__doc__)
    parser.add_argument("--project", type=Path, default=Path(), help="a project whose clean stage has run")
    parser.add_argument("--megabytes", type=float, nargs="+", default=[20, 200, 2000])
    parser.add_argument("--workers", type=int, default=2)
    add_rounds(parser, 2)
    args = parser.parse_args(argv)
    for size in args.megabytes:
        side = f"{size:g} MB"
        done = take_turns(
            {side: lambda size=size: build(args.project.resolve(), size, args.workers)},
            args.rounds,
            SECONDS,
            lambda stages: sum(usage.seconds for usage in stages.values()),
        )
        done.print("all stages", base=side)
        for stage in STAGES:
            each = [stages[stage] for stages in done.results[side]]
            seconds, peak = statistics.median(u.seconds for u in each), max(u.peak for u in each)
            print(f"  {stage:16}{seconds:8.1f} s {size / seconds:6.1f} MB/s {peak / 2**20:6.0f} MiB", flush=True)
