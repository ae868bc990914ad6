"""Training throughput against nanoGPT's recipe for a CPU, both sides in one run.

    python -m benchmarks.throughput [--rounds 5] [--seconds 8]

The yardstick is nanoGPT's algorithm as its README runs it on a CPU (GPT-2 blocks with LayerNorm and GELU, learned positions, float32,
eager, AdamW, batches cut at random from a memory-mapped file), written here from its description; sizes are those of the
laptop profile, so that both sides do nearly the same arithmetic. The other side is this project's own training step: Trainer's loss function,
loader and optimizer with the settings that `params.yaml` and this machine choose. The sides take turns; medians are printed with
their spread. Compiling and the first steps are outside the clock and told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from foundry.config import ModelConfig
from foundry.config.profiles import profile_config
from foundry.utils.allocator import keep_memory


class GPTBlock(nn.Module):
    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.ln1, self.ln2 = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.up, self.down = nn.Linear(dim, 4 * dim, bias=False), nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        B, T, C = x.shape
        q, k, v = (t.view(B, T, self.heads, -1).transpose(1, 2) for t in self.qkv(self.ln1(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(y.transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class GPT(nn.Module):
    def __init__(self, cfg: ModelConfig) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(cfg.vocab_size, cfg.dim), nn.Embedding(cfg.max_seq_len, cfg.dim)
        self.blocks = nn.ModuleList(GPTBlock(cfg.dim, cfg.n_heads) for _ in range(cfg.n_layers))
        self.ln = nn.LayerNorm(cfg.dim, bias=False)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        h = self.wte(x) + self.wpe(torch.arange(x.shape[1]))
        for block in self.blocks:
            h = block(h)
        return F.cross_entropy(F.linear(self.ln(h), self.wte.weight).flatten(0, 1), y.flatten())


def yardstick(cfg, seconds: float, folder: Path):
    """Yields tokens a second of one turn each."""
    model, T = GPT(cfg.model), cfg.model.max_seq_len
    rows = cfg.train.tokens_per_step // T
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    rest = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    path = folder / "tokens.bin"

    def step() -> None:
        data = np.memmap(path, np.uint16, "r")
        ix = torch.randint(len(data) - T, (rows,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in ix])
        model(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield from turns(step, cfg.train.tokens_per_step, seconds)


def ours(cfg, seconds: float, folder: Path):
    from foundry.training import Trainer
    from foundry.training.numerics import numerics

    trainer = Trainer.from_shards(cfg.model, cfg.train, folder / "shards", runtime=cfg.runtime, state=folder / "state")
    with numerics(trainer.runtime, trainer.world):
        state = trainer._start()

        def step() -> None:
            trainer._step(state)
            state.step += 1

        yield from turns(step, cfg.train.tokens_per_step, seconds)


def turns(step, tokens: int, seconds: float):
    for _ in range(3):
        step()
    while True:
        begin, n = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            step()
            n += 1
        yield n * tokens / (time.perf_counter() - begin)


def make_data(cfg, folder: Path) -> None:
    """Random words as shards and as a flat file: throughput does not depend on what the text says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from foundry.config import Shard
    from foundry.data.shard_writer import write_shards
    from foundry.data.shards import Shards
    from foundry.tokenizers import Tokenizer
    from foundry.tokenizers.train import train_tokenizer

    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(4000)]
    texts = [" ".join(words[i] for i in (rng.zipf(1.3, 200) % 4000)) for _ in range(3000)]
    for split, n in (("train", 2900), ("val", 50), ("test", 50)):
        (folder / "clean" / split).mkdir(parents=True)
        rows = [
            {"doc_id": f"{i:016d}", "text": t, "source": "words", "lang": "en", "n_bytes": len(t)}
            for i, t in enumerate(texts[:n])
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "clean" / split / "part-00000.parquet")
    train_tokenizer(texts, cfg.tokenizer, folder / "tokenizer.model")
    write_shards(folder / "clean", Tokenizer(folder / "tokenizer.model"), Shard(), folder / "shards")
    np.concatenate(Shards(folder / "shards", "train").tokens).tofile(folder / "tokens.bin")


def side(name: str, seconds: float, folder: Path) -> None:
    """A process of its own for each side: it answers every line on stdin with the speed of one turn."""
    cfg = profile_config("laptop")
    torch.manual_seed(1)
    if name == "ours":
        keep_memory()
    run = {"ours": ours, "nanogpt": yardstick}[name](cfg, seconds, folder)
    for _ in sys.stdin:
        print(json.dumps(next(run)), flush=True)


def main() -> None:
    import tempfile

    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--seconds", type=float, default=8.0)
    p.add_argument("--side", choices=("ours", "nanogpt"))
    p.add_argument("--folder", type=Path)
    args = p.parse_args()
    if args.side:
        return side(args.side, args.seconds, args.folder)
    with tempfile.TemporaryDirectory() as tmp:
        make_data(profile_config("laptop"), Path(tmp))
        children = {
            name: subprocess.Popen(
                [sys.executable, "-m", "benchmarks.throughput", "--side", name, "--seconds", str(args.seconds), "--folder", tmp],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
            for name in ("nanogpt", "ours")
        }  # fmt: skip
        speeds: dict[str, list[float]] = {name: [] for name in children}
        for _ in range(args.rounds):
            for name, child in children.items():  # one works, the other waits on its stdin
                child.stdin.write("go\n")
                child.stdin.flush()
                speeds[name].append(json.loads(last_json(child)))
        for child in children.values():
            child.stdin.close()
            child.wait()
    ratios = [b / a for a, b in zip(speeds["nanogpt"], speeds["ours"], strict=True)]
    for name, values in speeds.items():
        print(
            f"{name:8s} {statistics.median(values):9,.0f} tokens/s (median of {args.rounds}; {min(values):,.0f} to {max(values):,.0f})"
        )
    print(f"ratio    {statistics.median(ratios):9.2f} (median of the rounds; {min(ratios):.2f} to {max(ratios):.2f})")


def last_json(child) -> str:
    """The answer of a turn; the trainer's log lines before it are passed over."""
    for line in child.stdout:
        if line[0].isdigit():
            return line
    raise SystemExit("one side ended early")


if __name__ == "__main__":
    main()
