"""From the start of a process to the end of its first optimizer step: the kept library against torch.compile.

    python -m benchmarks.first_step [--rounds 2]

Each round starts every side twice, with the default profile's shape: cold, when nothing was ever compiled on this
machine, and warm, when the same was compiled before. torch.compile has a cache of its own for each round. Medians are
printed.
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

SIDES = ("ours", "torch.compile")


def child(side: str, data: Path) -> None:
    """A process that ends after its first step."""
    from benchmarks.throughput import config
    from foundry.training import Trainer, setup
    from foundry.training.numerics import numerics

    if side != "ours":
        setup.compiles_ahead = lambda *_: False
    cfg = config("laptop")
    runtime = cfg.runtime.model_copy(update={"compile": "always"})
    trainer = Trainer.from_shards(cfg.model, cfg.train, data / "shards", runtime=runtime)
    with numerics(trainer.runtime, trainer.world):
        session = trainer.session()
        session.step(session.state)


def seconds(side: str, data: Path, folder: Path) -> float:
    """Of one child, whose caches are all in `folder`."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    env = {
        **os.environ,
        "DVC_ROOT": str(folder),
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "TMPDIR": str(folder / "tmp"),
    }
    begin = time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.first_step", "--side", side, "--data", str(data)]
    subprocess.run(command, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begin


def main() -> None:
    from foundry.utils.allocator import keep_memory

    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=2)
    p.add_argument("--side", choices=SIDES)
    p.add_argument("--data", type=Path)
    args = p.parse_args()
    if args.side:
        keep_memory()
        return child(args.side, args.data)

    from benchmarks.throughput import config, make_data

    seen: dict[tuple[str, str], list[float]] = {(side, state): [] for state in ("cold", "warm") for side in SIDES}
    with tempfile.TemporaryDirectory() as tmp:
        make_data(config("laptop"), Path(tmp))
        for number in range(args.rounds):
            for state in ("cold", "warm"):
                for side in SIDES:
                    seen[side, state].append(seconds(side, Path(tmp), Path(tmp, f"{side}-{number}")))
    for state in ("cold", "warm"):
        ours, other = (statistics.median(seen[side, state]) for side in SIDES)
        print(f"{state}: {ours:.1f} s, torch.compile {other:.1f} s, ratio {other / ours:.1f}")


if __name__ == "__main__":
    main()
