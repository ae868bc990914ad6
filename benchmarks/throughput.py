"""Training throughput against plain loops, all sides in one run.

    python -m benchmarks.throughput [--size laptop S M L] [--rounds 5] [--seconds 8]

Sides, each in a process of its own:

  nanogpt   nanoGPT's algorithm as its README runs it on a CPU (GPT-2 blocks with LayerNorm and GELU, learned positions,
            float32, eager, AdamW, batches cut at random from a memory-mapped file), written here from its description
  hf        transformers' LlamaForCausalLM of our shape in a plain loop with fused AdamW; where the processor multiplies
            bfloat16 natively, under autocast and compiled
  plain     our model in the same plain loop: what the trainer costs or gains is the difference
  ours      the project's own training step: Trainer's loss, loader and optimizer (Muon) with the settings that this
            machine chooses

`laptop` is the default profile's shape; S, M and L have 1, 11 and 32 million parameters without the embedding. The peak
is that of the largest matrix product measured in the same process, in the precision of the side. Compiling and the
first steps are not in the measured time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.config import ModelConfig
from foundry.config.profiles import profile_config
from foundry.models.accounting import train_flops_per_token
from foundry.utils.allocator import keep_memory

SIZES = {  # shape, tokens of a step
    "laptop": ({}, 2048),
    "S": ({"dim": 128, "n_layers": 5, "n_heads": 4, "n_kv_heads": 4, "ffn_dim": 384}, 4096),
    "M": ({"dim": 384, "n_layers": 6, "n_heads": 6, "n_kv_heads": 6, "ffn_dim": 1024}, 4096),
    "L": ({"dim": 512, "n_layers": 10, "n_heads": 8, "n_kv_heads": 8, "ffn_dim": 1408, "max_seq_len": 512}, 4096),
}


def config(size: str):
    cfg = profile_config("laptop")
    shape, tokens = SIZES[size]
    return cfg.model_copy(
        update={
            "model": cfg.model.model_copy(update=shape),
            "train": cfg.train.model_copy(update={"tokens_per_step": tokens}),
        }
    )


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


def loop(cfg, seconds: float, folder: Path, model: nn.Module, loss_of, fused: bool):
    """Yields the tokens per second of each turn of the plain loop."""
    T = cfg.model.max_seq_len
    rows = cfg.train.tokens_per_step // T
    matrices, rest = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99), fused=fused)
    path = folder / "tokens.bin"

    def step() -> None:
        data = np.memmap(path, np.uint16, "r")
        ix = torch.randint(len(data) - T, (rows,))
        x = torch.stack([torch.from_numpy(data[i : i + T].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + T].astype(np.int64)) for i in ix])
        loss_of(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    yield from turns(step, cfg.train.tokens_per_step, seconds)


def nanogpt(cfg, seconds: float, folder: Path):
    model = GPT(cfg.model)
    yield from loop(cfg, seconds, folder, model, model, fused=False)


def _as_an_expert_runs_it(loss_of):
    """Under bfloat16 autocast where the processor has bfloat16, and then compiled where torch.compile works."""
    from foundry.utils.device import compile_problem

    if precision() == torch.float32:
        return loss_of

    def half(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss_of(x, y)

    if problem := compile_problem(torch.device("cpu")):
        print(f"not compiled: {problem}", file=sys.stderr)
        return half
    return torch.compile(half)


def precision() -> torch.dtype:
    from foundry.utils.device import resolve_precision

    return resolve_precision("auto", torch.device("cpu"))


def llama(cfg: ModelConfig) -> nn.Module:
    """transformers' LlamaForCausalLM of our shape; attention by PyTorch's fused kernels."""
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.dim,
        intermediate_size=cfg.ffn_dim,
        num_hidden_layers=cfg.n_layers,
        num_attention_heads=cfg.n_heads,
        num_key_value_heads=cfg.n_kv_heads,
        max_position_embeddings=cfg.max_seq_len,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=None,
    )
    return LlamaForCausalLM(shape)


def hf(cfg, seconds: float, folder: Path):
    model = llama(cfg.model)

    def loss_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x, use_cache=False).logits.flatten(0, 1).float(), y.flatten())

    yield from loop(cfg, seconds, folder, model, _as_an_expert_runs_it(loss_of), fused=True)


def plain(cfg, seconds: float, folder: Path):
    from foundry.models import MiniLLM

    model = MiniLLM(cfg.model)
    loss_of = _as_an_expert_runs_it(lambda x, y: model(x, y)[1])
    yield from loop(cfg, seconds, folder, model, loss_of, fused=True)


def ours(cfg, seconds: float, folder: Path):
    from foundry.training import Trainer
    from foundry.training.numerics import numerics

    trainer = Trainer.from_shards(cfg.model, cfg.train, folder / "shards", runtime=cfg.runtime, state=folder / "state")
    with numerics(trainer.runtime, trainer.world):
        session = trainer.session()

        def step() -> None:
            session.step(session.state)
            session.state.step += 1

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


def make_data(cfg, folder: Path, documents: int = 3000) -> None:
    """Writes random words as shards and as a flat file: throughput does not depend on what the text says."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from foundry.config import Shard
    from foundry.data.tokens.shard_writer import write_shards
    from foundry.data.tokens.shards import Shards
    from foundry.tokenizers import Tokenizer
    from foundry.tokenizers.train import train_tokenizer

    rng = np.random.default_rng(0)
    words = ["".join(map(chr, rng.integers(97, 123, rng.integers(2, 9)))) for _ in range(4000)]
    texts = [" ".join(words[i] for i in (rng.zipf(1.3, 200) % 4000)) for _ in range(documents)]
    for split, n in (("train", documents - 100), ("val", 50), ("test", 50)):
        (folder / "clean" / split).mkdir(parents=True)
        rows = [
            {"doc_id": f"{i:016d}", "text": t, "source": "words", "lang": "en", "n_bytes": len(t)}
            for i, t in enumerate(texts[:n])
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "clean" / split / "part-00000.parquet")
    train_tokenizer(texts, cfg.tokenizer, folder / "tokenizer.model")
    write_shards(folder / "clean", Tokenizer(folder / "tokenizer.model"), Shard(), folder / "shards")
    np.concatenate(Shards(folder / "shards", "train").tokens).tofile(folder / "tokens.bin")


SIDES = {"nanogpt": nanogpt, "hf": hf, "plain": plain, "ours": ours}


def side(name: str, size: str, seconds: float, folder: Path) -> None:
    """The process of one side: answers every line on stdin with the speed of one turn and the machine's peak then."""
    from foundry.utils.device import peak_flops

    cfg = config(size)
    torch.manual_seed(1)
    if name == "ours":
        keep_memory()
    run = SIDES[name](cfg, seconds, folder)
    dtype = torch.float32 if name == "nanogpt" else precision()
    for _ in sys.stdin:
        peak = peak_flops(torch.device("cpu"), dtype)
        print(json.dumps([next(run), peak]), flush=True)


def main() -> None:
    import tempfile

    p = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    p.add_argument("--size", choices=SIZES, nargs="+", default=["laptop"])
    add_rounds(p, 5)
    p.add_argument("--seconds", type=float, default=8.0)
    p.add_argument("--side", choices=SIDES)
    p.add_argument("--folder", type=Path)
    args = p.parse_args()
    if args.side:
        return side(args.side, args.size[0], args.seconds, args.folder)
    with tempfile.TemporaryDirectory() as tmp:
        make_data(config("laptop"), Path(tmp))
        for size in args.size:
            compare(size, args.rounds, args.seconds, tmp)


def compare(size: str, rounds: int, seconds: float, folder: str) -> None:
    command = [sys.executable, "-m", "benchmarks.throughput", "--size", size, "--seconds", str(seconds)]
    children = {
        name: subprocess.Popen(
            [*command, "--folder", folder, "--side", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in SIDES
    }

    def turn(child) -> tuple[float, float]:  # one works, the others wait on their stdin
        child.stdin.write("go\n")
        child.stdin.flush()
        return json.loads(last_json(child))

    sides = {name: partial(turn, child) for name, child in children.items()}
    done = take_turns(sides, rounds, Measure("tokens/s", more_is_better=True), lambda result: result[0])
    for child in children.values():
        child.stdin.close()
        child.wait()
    flops = train_flops_per_token(config(size).model)  # of our model, so not of nanoGPT's
    shares = {n: statistics.median(v * flops / p for v, p in r) for n, r in done.results.items() if n != "nanogpt"}
    notes = {name: f"{share:.2f} of the peak" for name, share in shares.items()}
    done.print(f"{size}: {SIZES[size][1]} tokens per step", base="nanogpt", notes=notes)


def last_json(child) -> str:
    """The answer of a turn; the trainer's log lines before it are skipped."""
    for line in child.stdout:
        if line[0] == "[":
            return line
    raise SystemExit("one side ended early")


if __name__ == "__main__":
    main()
