"""Time to quality: seconds of training to nanoGPT's bits per byte, both sides on the same text in one run.

    python -m benchmarks.speedrun --project DIR [--seconds 300] [--budgets 10 20 40 80]

`--project` is a folder in which `dvc repro shard` has run: both sides train on its training text and are scored on its whole test text,
every byte once. The yardsticks are nanoGPT's algorithm (GPT-2 blocks, learned positions, AdamW, random windows), written here from its
description:

  readme   its README's recipe for a CPU: characters, 4 layers of 128, context 64, batch 12, float32, eager, cosine to a tenth
  expert   what somebody who knows it would run: the BPE pieces of the project, context 256, batch 16, bfloat16 and compiled where the
           processor has it, learning rate 3e-3

Ours is the project's own recipe (`params.yaml`, exportable), by the project's own trainer, once for each budget: the schedule of a run spans its
budget. The clock counts training steps alone. What it leaves out is printed beside it: start-up, compiling, and for the BPE sides the
tokenizer and the encoding of the corpus, from the project's timings. One seed.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.throughput import GPT
from foundry.config import Config, ModelConfig, Runtime, load_config
from foundry.utils.allocator import keep_memory


def texts_of(project: Path, split: str) -> list[str]:
    from foundry.data.shards import read_clean

    return [r["text"] for rows in read_clean(project / "data/clean" / split, ["text"]) for r in rows]


def cosine(step: int, steps: int, peak: float, warmup: int) -> float:
    """nanoGPT's schedule: linear warm-up, cosine to a tenth of the peak."""
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    done = (step - warmup) / max(1, steps - warmup)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, done))))


def yardstick(
    project: Path, seconds: float, *, ids: list[np.ndarray], test: list[np.ndarray], n_bytes: int, cfg: ModelConfig, rows: int, lr: float,
    half: bool, unscored: int = -1,
) -> dict:  # fmt: skip
    """nanoGPT's loop for so many seconds of training; bits per byte on the test tokens."""
    torch.manual_seed(1)
    model, T = GPT(cfg), cfg.max_seq_len
    for p in model.parameters():
        if p.ndim >= 2:
            nn.init.normal_(p, std=0.02)
    data = torch.from_numpy(np.concatenate(ids).astype(np.int64))
    matrices, rest = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99))
    loss_of = torch.compile(model) if half else model
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=half)

    def step() -> None:
        ix = torch.randint(len(data) - T - 1, (rows,))
        x = torch.stack([data[i : i + T] for i in ix])
        y = torch.stack([data[i + 1 : i + 1 + T] for i in ix])
        with autocast:
            loss = loss_of(x, y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    for group in optimizer.param_groups:  # the speed, without learning
        group["lr"] = 0.0
    step()
    begin = time.perf_counter()
    for _ in range(10):
        step()
    steps = max(20, round(seconds * 10 / (time.perf_counter() - begin)))
    optimizer.state.clear()
    begin, n = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        now = cosine(max(n, round(steps * spent / seconds)), steps, lr, 100)  # the schedule follows the clock
        for group in optimizer.param_groups:
            group["lr"] = now
        step()
        n += 1
    spent = time.perf_counter() - begin
    flat = torch.from_numpy(np.concatenate(test).astype(np.int64))
    nats = 0.0
    with torch.inference_mode():
        for i in range(0, len(flat) - 1, 64 * T):
            piece = flat[i : i + 64 * T + 1]
            for k in range(0, len(piece) - 1, T):
                x, y = piece[k : k + T], piece[k + 1 : k + T + 1]
                y = torch.where(y == unscored, -100, y)
                if valid := int((y >= 0).sum()):
                    nats += model(x[: len(y)][None], y[None]).item() * valid
    return {"seconds": spent, "steps": n, "bits_per_byte": nats / math.log(2) / n_bytes}


def readme(project: Path, seconds: float) -> dict:
    train, test = texts_of(project, "train"), texts_of(project, "test")
    known = {c: i for i, c in enumerate(sorted(set("".join(train) + "".join(test)) | {"\n"}))}

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array([known[c] for c in t + "\n"], np.int32) for t in texts]

    cfg = ModelConfig(vocab_size=len(known), dim=128, n_layers=4, n_heads=4, n_kv_heads=4, max_seq_len=64)
    n_bytes = sum(len(t.encode()) + 1 for t in test)
    return yardstick(project, seconds, ids=encode(train), test=encode(test), n_bytes=n_bytes, cfg=cfg, rows=12, lr=1e-3, half=False)  # fmt: skip


def expert(project: Path, seconds: float) -> dict:
    from foundry.data.shards import Shards
    from foundry.tokenizers.tokenizer import EOS_ID
    from foundry.utils.device import native_bfloat16

    shards = {s: Shards(project / "data/shards", s) for s in ("train", "test")}
    test = [t[1:] for t, _, _ in shards["test"].documents()]
    n_bytes = sum(n for _, n, _ in shards["test"].documents())
    cfg = ModelConfig(
        vocab_size=shards["train"].index["vocab_size"], dim=256, n_layers=3, n_heads=4, n_kv_heads=4, max_seq_len=256
    )
    half = native_bfloat16(torch.device("cpu"))
    tokens = shards["train"].tokens
    return yardstick(
        project, seconds, ids=tokens, test=test, n_bytes=n_bytes, cfg=cfg, rows=16, lr=3e-3, half=half, unscored=EOS_ID
    )


def ours(project: Path, seconds: float) -> dict:
    from foundry.data.documents import batches, windows
    from foundry.data.shards import Shards
    from foundry.models.scoring import score_documents
    from foundry.training import Trainer
    from foundry.training.numerics import numerics

    cfg: Config = load_config(project / "params.yaml")
    data, runtime = project / "data/shards", Runtime(device="cpu", checkpoint_interval=10**9)
    with tempfile.TemporaryDirectory() as tmp:
        probe = Trainer.from_shards(cfg.model, cfg.train, data, seed=cfg.seed, runtime=runtime, state=Path(tmp))
        with numerics(probe.runtime, probe.world):
            state, taken = probe._start(), []
            for _ in range(6):
                begin = time.perf_counter()
                probe._step(state)
                state.step += 1
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
        return {"seconds": trainer._state.seconds, "steps": steps, "bits_per_byte": float(bits)}


SIDES = {"readme": readme, "expert": expert, "ours": ours}


def turn(side: str, project: Path, seconds: float) -> dict:
    """One run in a process of its own; `process` is all of its seconds."""
    begin = time.perf_counter()
    command = [
        sys.executable,
        "-m",
        "benchmarks.speedrun",
        "--project",
        str(project),
        "--side",
        side,
        "--seconds",
        str(seconds),
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    row = json.loads(done.stdout.strip().splitlines()[-1]) | {"process": time.perf_counter() - begin}
    print(
        f"{side:8} {row['seconds']:8.1f} s of training {row['steps']:7,} steps {row['bits_per_byte']:8.4f} bits per byte "
        f"{row['process']:8.1f} s in all",
        flush=True,
    )
    return row


def seconds_to(rows: list[dict], bits: float, key: str) -> float | None:
    """Interpolated over the runs in log seconds; None if none of them is as good."""
    rows = sorted(rows, key=lambda r: r["seconds"])
    for before, after in zip([None, *rows[:-1]], rows, strict=True):
        if after["bits_per_byte"] <= bits:
            if before is None:
                return after[key]
            share = (before["bits_per_byte"] - bits) / (before["bits_per_byte"] - after["bits_per_byte"])
            return math.exp(math.log(before[key]) + share * (math.log(after[key]) - math.log(before[key])))
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--project", type=Path, required=True)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help="of the README's recipe; the expert has a fifth of it"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=[5, 10, 20, 40, 80], help="of ours")
    parser.add_argument("--side", choices=SIDES)
    args = parser.parse_args()
    if args.side:
        if args.side == "ours":
            keep_memory()
        torch.set_flush_denormal(True)
        print(json.dumps(SIDES[args.side](args.project, args.seconds)))
        return
    mine = [turn("ours", args.project, b) for b in args.budgets[: len(args.budgets) // 2]]
    slow = turn("readme", args.project, args.seconds)
    mine += [turn("ours", args.project, b) for b in args.budgets[len(args.budgets) // 2 :]]
    skilled = turn("expert", args.project, args.seconds / 5)
    timings = [json.loads(x) for x in (args.project / ".foundry/timings.jsonl").read_text().splitlines()]
    before = sum(
        [t["startup_s"] + t["work_s"] for t in timings if t["stage"] == s][-1] for s in ("train_tokenizer", "shard")
    )
    print(f"left out by the clock for the BPE sides: tokenizer and encoding, {before:.1f} s once")
    for name, row in (("readme", slow), ("expert", skilled)):
        mark = row["bits_per_byte"]
        needed = seconds_to(mine, mark, "seconds")
        whole = seconds_to(mine, mark, "process")
        if needed is None:
            print(f"{name}: ours did not reach {mark:.4f} in the budgets given")
            continue
        extra = 0.0 if name == "expert" else before
        print(
            f"{name}: its {mark:.4f} bits per byte after {row['seconds']:.0f} s take ours {needed:.1f} s: {row['seconds'] / needed:.1f} times less; "
            f"whole processes, tokenizer included: {row['process'] / (whole + extra):.1f} times"
        )


if __name__ == "__main__":
    main()
