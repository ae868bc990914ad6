"""Start-up of the seven stages, against stages that import every tool.

    python -m benchmarks.startup [--rounds 3]

A stage's start-up is the time before its work begins: the interpreter and the imports of its module. Each round starts
every stage's module in a fresh process that ends where the work would begin; the other side imports torch, mlflow,
prefect and pandera in each stage, as a pipeline does that does not care. Medians of the sums are printed.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

STAGES = ("download", "clean", "train_tokenizer", "shard", "train", "evaluate", "export")


def seconds(code: str) -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], check=True)
    return time.perf_counter() - begin


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=3)
    rounds = p.parse_args().rounds
    each: dict[str, list[float]] = {s: [] for s in STAGES}
    naive: list[float] = []
    for _ in range(rounds):
        for stage in STAGES:
            each[stage].append(seconds(f"import stages.{stage}; from foundry.config import load_params; load_params()"))
        naive.append(seconds("import torch, mlflow, prefect, pandera.pyarrow"))
    for stage, values in each.items():
        print(f"{stage:16s} {statistics.median(values):6.2f} s")
    total = statistics.median(map(sum, zip(*each.values(), strict=True)))
    other = statistics.median(naive) * len(STAGES)
    print(
        f"sum              {total:6.2f} s; with every tool imported in each stage {other:.2f} s, "
        f"ratio {other / total:.1f}"
    )


if __name__ == "__main__":
    main()
