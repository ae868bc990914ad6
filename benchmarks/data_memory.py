"""Peak memory and time of clean, train_tokenizer and shard on growing corpora, made by repetition with mutations.

Memory is that of a stage's whole process tree (Pss: shared pages once, memory-mapped files included), sampled ten times
per second.
"""

from __future__ import annotations

import argparse
import json
import os
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


def measure(project: Path, megabytes: float, workers: int) -> dict[str, Usage]:
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
    args = parser.parse_args(argv)
    print(f"{'MB':>6} " + " ".join(f"{s:>24}" for s in STAGES))
    for size in args.megabytes:
        row = measure(args.project.resolve(), size, args.workers)
        cells = (f"{u.seconds:7.1f} s {size / u.seconds:5.1f} MB/s {u.peak / 2**20:5.0f} MiB" for u in row.values())
        print(f"{size:6.0f} " + " ".join(cells), flush=True)
        numbers = {stage: [round(u.seconds, 2), u.peak] for stage, u in row.items()}
        print(json.dumps({"megabytes": size, **numbers}), file=sys.stderr, flush=True)
