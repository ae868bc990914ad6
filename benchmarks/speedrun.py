"""Time to quality: seconds of training until a peer's bits per byte, all sides on the same text in one run.

    python -m benchmarks.speedrun --project DIR [--seconds 300] [--budgets 5 10 20 40 80]
        [--nanochat DIR] [--litgpt DIR] [--rounds 1]

`--project` is a folder in which `dvc repro shard` has run: every side trains on its training text and is scored on its
whole test text, every byte once. The peers (see `speedrun_peers`):

  readme     nanoGPT by its README's recipe for a CPU: characters, 4 layers of 128, context 64, batch 12, float32, eager
  expert     nanoGPT as an expert runs it: our BPE pieces, context 256, lr 3e-3; compiled bfloat16 where native
  nanochat, litgpt   themselves, from a checkout

Ours is the project's own recipe (`params.yaml`, exportable), by the project's own trainer, once per budget: the
schedule of a training spans its budget. Only training steps are timed. What that leaves out is printed beside it:
start-up, compiling, and for the BPE sides the tokenizer and the encoding of the corpus, from the project's timings. One
seed. A round trains every side; rounds are compared by their steps per second.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.rounds import Measure, add_rounds, take_turns
from benchmarks.speedrun_peers import PEERS, Result, train_and_score
from foundry.config import Config, Runtime, load_params
from foundry.utils.allocator import keep_memory


def ours(project: Path, seconds: float) -> Result:
    from foundry.data.tokens.documents import batches, windows
    from foundry.data.tokens.shards import Shards
    from foundry.models.scoring import score_documents
    from foundry.training import Trainer
    from foundry.training.numerics import numerics

    cfg: Config = load_params(project / "params.yaml")
    data, runtime = project / "data/shards", Runtime(device="cpu", checkpoint_interval=10**9)
    with tempfile.TemporaryDirectory() as tmp:
        probe = Trainer.from_shards(cfg.model, cfg.train, data, seed=cfg.seed, runtime=runtime, state=Path(tmp))
        with numerics(probe.runtime, probe.world):
            session, taken = probe.session(), []
            for _ in range(6):
                begin = time.perf_counter()
                session.step(session.state)
                session.state.step += 1
                taken.append(time.perf_counter() - begin)
        steps = max(20, round(seconds / sorted(taken[1:])[2]))
        train = cfg.train.model_copy(
            update={"steps": steps, "warmup_steps": min(40, steps // 10), "eval_interval": steps, "eval_tokens": 256}
        )
        trainer = Trainer.from_shards(cfg.model, train, data, seed=cfg.seed, runtime=runtime, state=Path(tmp))
        result = trainer.fit()
        documents = [(t, n) for t, n, _ in Shards(data, "test").documents()]
        T = cfg.model.max_seq_len
        items = batches(windows([t for t, _ in documents], T, T), 8)
        nats, _ = score_documents(result.model, items, len(documents))
        bits = nats.sum() / math.log(2) / sum(n for _, n in documents)
        return Result(trainer.session().state.seconds, steps, float(bits))


def turn(side: str, project: Path, seconds: float, checkout: Path | None = None) -> Result:
    """One training in a process of its own."""
    begin = time.perf_counter()
    options = ["--project", str(project), "--side", side, "--seconds", str(seconds)]
    if checkout:
        options += [f"--{side}", str(checkout)]
    command = [sys.executable, "-m", "benchmarks.speedrun", *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    printed = Result(**json.loads(done.stdout.strip().splitlines()[-1]))
    result = replace(printed, process=time.perf_counter() - begin)
    print(
        f"{side:8} {result.seconds:8.1f} s of training {result.steps:7,} steps "
        f"{result.bits_per_byte:8.4f} bits per byte {result.process:8.1f} s in all",
        flush=True,
    )
    return result


def seconds_to(results: list[Result], bits: float, of: Callable[[Result], float]) -> float | None:
    """Seconds until so many bits per byte, interpolated in log seconds; None if no result is as good.

    Args:
        of: which seconds.
    """
    results = sorted(results, key=lambda r: r.seconds)
    for before, after in zip([None, *results[:-1]], results, strict=True):
        if after.bits_per_byte <= bits:
            if before is None:
                return of(after)
            share = (before.bits_per_byte - bits) / (before.bits_per_byte - after.bits_per_byte)
            return math.exp(math.log(of(before)) + share * (math.log(of(after)) - math.log(of(before))))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="of the README's recipe; the others have a fifth of it"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[5, 10, 20, 40, 80], help="of ours")
    parser.add_argument("--nanochat", type=Path, help="a checkout")
    parser.add_argument("--litgpt", type=Path, help="a checkout; what it imports must be installed")
    add_rounds(parser, 1)
    parser.add_argument("--side", choices=["ours", *PEERS])
    args = parser.parse_args()
    if args.side:
        torch.manual_seed(1)
        torch.set_flush_denormal(True)
        if args.side == "ours":
            keep_memory()
            result = ours(args.project, args.seconds)
        else:
            peer, text = PEERS[args.side](args.project, getattr(args, args.side, None))
            result = train_and_score(peer, text, args.seconds)
        print(json.dumps(asdict(result)))
        return
    timings = [json.loads(x) for x in (args.project / ".foundry/timings.jsonl").read_text().splitlines()]
    before = sum(
        [t["startup_s"] + t["work_s"] for t in timings if t["stage"] == s][-1] for s in ("train_tokenizer", "shard")
    )
    sides = {f"ours {b:g} s": partial(turn, "ours", args.project, b) for b in args.budgets}
    sides["readme"] = partial(turn, "readme", args.project, args.seconds)
    for name in ("expert", "nanochat", "litgpt"):
        if name == "expert" or getattr(args, name):
            sides[name] = partial(turn, name, args.project, args.seconds / 5, getattr(args, name, None))
    done = take_turns(sides, args.rounds, Measure("steps/s", more_is_better=True), lambda r: r.steps / r.seconds)
    done.print("trainings", base="readme")
    print(f"not in the measured time of the BPE sides: tokenizer and encoding, {before:.1f} s once")
    for name in [side for side in sides if side in PEERS]:
        report(name, done.results, before if name == "readme" else 0.0)  # the other sides need the same pieces


def report(name: str, results: dict[str, list[Result]], extra: float) -> None:
    """Prints the median and the best of how many times less ours need until the peer's quality.

    Args:
        extra: seconds that only ours need before the training.
    """
    training, process = [], []
    for number, peer in enumerate(results[name]):
        mine = [each[number] for side, each in results.items() if side not in PEERS]
        seconds = seconds_to(mine, peer.bits_per_byte, lambda r: r.seconds)
        if seconds is None:
            print(f"{name}: ours did not reach {peer.bits_per_byte:.4f} in the given budgets")
            return
        training.append(peer.seconds / seconds)
        process.append(peer.process / (seconds_to(mine, peer.bits_per_byte, lambda r: r.process) + extra))
    bits = statistics.median(r.bits_per_byte for r in results[name])
    print(
        f"{name}: {bits:.4f} bits per byte after {results[name][0].seconds:.0f} s; ours need "
        f"{statistics.median(training):.1f} times less (best {max(training):.1f}); whole processes, tokenizer "
        f"included: {statistics.median(process):.1f} (best {max(process):.1f})"
    )


if __name__ == "__main__":
    main()
