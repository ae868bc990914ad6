"""The cost of tracking per training step, against a training without it, at the default size.

    python -m benchmarks.tracking [--rounds 8] [--steps 40]

One process trains the default profile's model on random words. The sides take turns of so many steps: with everything
that a run has (spool, uploader thread to a SQLite store, system metrics) and with nothing. A point is logged as often
as `train.log_interval` says, as in a run. Target: under 1 %. The uploader's start (importing mlflow, making the run)
happens once per run and is not in the measured time; what it does while metrics arrive is.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

from benchmarks.rounds import Measure, Rounds, add_rounds, take_turns
from benchmarks.throughput import config, make_data
from foundry.tracking import Tracker
from foundry.utils.allocator import keep_memory

TARGET = 0.01


class Training:
    """The default profile's training, step by step."""

    def __init__(self, folder: Path) -> None:
        from foundry.training import Trainer

        self.cfg = config("laptop")
        self.trainer = Trainer.from_shards(
            self.cfg.model, self.cfg.train, folder / "shards", runtime=self.cfg.runtime, state=folder / "state"
        )
        self.session = self.trainer.session()
        self.state = self.session.state

    def turn(self, steps: int, tracker: Tracker | None) -> float:
        """Trains so many steps; returns milliseconds per step."""
        begin = time.perf_counter()
        for _ in range(steps):
            loss, norm, factor = self.session.step(self.state)
            self.state.step += 1
            if tracker and self.state.step % self.cfg.train.log_interval == 0:
                now = time.perf_counter() - begin
                timed = dict.fromkeys(("tokens_per_second", "gflops", "seconds", "share_of_peak"), now)
                values = {"loss": loss, "grad_norm": norm, "lr": factor, "bits_per_byte": loss, **timed}
                tracker.log(self.state.step, values)
        return 1000 * (time.perf_counter() - begin) / steps


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_rounds(p, 8)
    p.add_argument("--steps", type=int, default=40, help="steps of a turn (default: %(default)s)")
    args = p.parse_args()
    keep_memory()
    with tempfile.TemporaryDirectory() as tmp:
        os.environ["DVC_ROOT"] = tmp
        make_data(config("laptop"), Path(tmp))
        done = measure(Path(tmp), args.rounds, args.steps)
    done.print(f"{args.steps} steps of training", base="without tracking")
    print(f"cost of tracking: {done.ratio('with tracking', 'without tracking') - 1:+.2%} (target < {TARGET:.0%})")


def measure(folder: Path, rounds: int, steps: int) -> Rounds[float]:
    from foundry.training.numerics import numerics

    training = Training(folder)

    def tracked() -> float:
        state = folder / "tracked" / "run"
        with Tracker(
            state, uri=f"sqlite:///{folder}/mlflow.db", experiment="cost", run_name="cost", fingerprint="cost"
        ) as tracker:
            while not tracker._delivery.client:
                time.sleep(0.05)
            return training.turn(steps, tracker)

    with numerics(training.trainer.runtime, training.trainer.world):
        training.turn(5, None)
        sides = {"without tracking": lambda: training.turn(steps, None), "with tracking": tracked}
        return take_turns(sides, rounds, Measure("ms/step", more_is_better=False))


if __name__ == "__main__":
    main()
