"""Start-up of the seven stages, against stages that import every tool.

    python -m benchmarks.startup [--rounds 3]

A stage's start-up is the time before its work begins: the interpreter and the imports of its module. Each round starts
every stage's module in a fresh process that ends where the work would begin; the other side imports torch, mlflow,
prefect and pandera in each stage, as a pipeline does that does not care: its turn is one such process, seven times.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

from benchmarks.rounds import SECONDS, add_rounds, take_turns

STAGES = ("download", "clean", "train_tokenizer", "shard", "train", "evaluate", "export")


def seconds(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def ours() -> dict[str, float]:
    """Seconds of each stage."""
    return {s: seconds(f"import stages.{s}; from foundry.config import load_params; load_params()") for s in STAGES}


def naive() -> dict[str, float]:
    return dict.fromkeys(STAGES, seconds("import torch, mlflow, prefect, pandera.pyarrow"))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_rounds(p, 3)
    rounds = p.parse_args().rounds
    sides = {"this project": ours, "every tool in each stage": naive}
    done = take_turns(sides, rounds, SECONDS, lambda each: sum(each.values()))
    for stage in STAGES:
        print(f"{stage:16} {statistics.median(each[stage] for each in done.results['this project']):6.2f} s")
    done.print("start-up of the seven stages", base="this project")


if __name__ == "__main__":
    main()
