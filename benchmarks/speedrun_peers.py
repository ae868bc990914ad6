"""The peers of `benchmarks.speedrun`: a loss, an optimizer and a schedule each, run by one timed loop.

nanoGPT's recipes are written here from their description. nanochat and litgpt are used as they are, from a checkout
that the user names: each with its own model, initialisation, optimizer and schedule, batches of 16 rows of 256 tokens,
and about as many operations as our default.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.throughput import GPT
from foundry.config import ModelConfig
from foundry.data.tokens.shards import Shards, read_clean
from foundry.tokenizers.tokenizer import EOS_ID
from foundry.utils.device import native_bfloat16, quote_library_folders

IGNORED = -100


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        seconds: of training steps, without start-up and compiling.
        bits_per_byte: on the whole test text.
        compiling: seconds of the first step; None for ours.
        process: seconds of the whole process; None until it has ended.
    """

    seconds: float
    steps: int
    bits_per_byte: float
    compiling: float | None = None
    process: float | None = None


@dataclass(frozen=True)
class Peer:
    """One side.

    Attributes:
        loss: (tokens, targets) → mean nats over the targets that are not IGNORED.
        schedule: called before each step with its number and the number of all steps.
        rows, length: shape of a batch.
    """

    model: nn.Module
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer
    schedule: Callable[[int, int], None]
    rows: int
    length: int
    clip: float = 1.0


@dataclass(frozen=True)
class Text:
    """The text of a side.

    Attributes:
        train, test: arrays of tokens.
        n_bytes: of the test text.
        vocab: number of different tokens.
        unscored: a target that is not counted (ours count no end symbol either).
    """

    train: list[np.ndarray]
    test: list[np.ndarray]
    n_bytes: int
    vocab: int
    unscored: int = -1


def train_and_score(peer: Peer, text: Text, seconds: float) -> Result:
    """Trains for so many seconds, then scores every test token once, in adjacent windows."""
    data, T = torch.from_numpy(np.concatenate(text.train).astype(np.int64)), peer.length
    first = {k: v.clone() for k, v in peer.model.state_dict().items()}

    def step() -> None:
        ix = torch.randint(len(data) - T - 1, (peer.rows,))
        x = torch.stack([data[i : i + T] for i in ix])
        y = torch.stack([data[i + 1 : i + 1 + T] for i in ix])
        peer.loss(x, y).backward()
        if peer.clip:
            nn.utils.clip_grad_norm_(peer.model.parameters(), peer.clip)
        peer.optimizer.step()
        peer.optimizer.zero_grad(set_to_none=True)

    peer.schedule(0, 1000)
    begin = time.perf_counter()
    step()  # compiles; reported separately
    compiling = time.perf_counter() - begin
    begin = time.perf_counter()
    for _ in range(10):
        step()
    steps = max(20, round(seconds * 10 / (time.perf_counter() - begin)))
    peer.model.load_state_dict(first)
    peer.optimizer.state.clear()
    torch.manual_seed(1)
    begin, n = time.perf_counter(), 0
    while (spent := time.perf_counter() - begin) < seconds:
        peer.schedule(min(steps - 1, max(n, round(steps * spent / seconds))), steps)  # the schedule follows the clock
        step()
        n += 1
    spent = time.perf_counter() - begin
    flat, nats = torch.from_numpy(np.concatenate(text.test).astype(np.int64)), 0.0
    with torch.no_grad():
        for k in range(0, len(flat) - 2, T):
            x, y = flat[k : k + T], flat[k + 1 : k + T + 1]
            y = torch.where(y == text.unscored, IGNORED, y)
            if valid := int((y >= 0).sum()):
                nats += peer.loss(x[: len(y)][None], y[None]).item() * valid
    bits = nats / math.log(2) / text.n_bytes
    return Result(spent, n, bits, compiling)


def _adamw(model: nn.Module, lr: float, betas: tuple[float, float]) -> torch.optim.Optimizer:
    matrices, rest = [p for p in model.parameters() if p.ndim >= 2], [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=betas)


def _cosine(
    optimizer: torch.optim.Optimizer, peak: float, warmup: int, floor: float = 0.1
) -> Callable[[int, int], None]:
    def set_lr(step: int, steps: int) -> None:
        done = max(0.0, (step - warmup) / max(1, steps - warmup))
        share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        for group in optimizer.param_groups:
            group["lr"] = peak * min(share, (step + 1) / (warmup + 1))

    return set_lr


def _half(loss: Callable) -> Callable:
    """bfloat16 autocast and torch.compile, where the processor multiplies bfloat16 natively."""
    if not native_bfloat16(torch.device("cpu")):
        return loss

    def under_autocast(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return loss(x, y)

    quote_library_folders()
    return torch.compile(under_autocast)


def pieces(project: Path) -> Text:
    """The project's own tokens."""
    shards = {s: Shards(project / "data/shards", s) for s in ("train", "test")}
    documents = list(shards["test"].documents())
    vocab = shards["train"].index.vocab_size
    return Text(shards["train"].tokens, [t for t, _, _ in documents], sum(n for _, n, _ in documents), vocab, EOS_ID)


def readme(project: Path, checkout: Path | None) -> tuple[Peer, Text]:
    """nanoGPT's README for a CPU: characters, 4 layers of 128, context 64, batch 12, float32, eager."""

    def texts(split: str) -> list[str]:
        return [r["text"] + "\n" for rows in read_clean(project / "data/clean" / split, ["text"]) for r in rows]

    train, test = texts("train"), texts("test")
    known = {c: i for i, c in enumerate(sorted(set("".join(train) + "".join(test))))}

    def encoded(docs: list[str]) -> list[np.ndarray]:
        return [np.array([known[c] for c in d], np.int32) for d in docs]

    text = Text(encoded(train), encoded(test), sum(len(d.encode()) for d in test), len(known))
    cfg = ModelConfig(vocab_size=len(known), dim=128, n_layers=4, n_heads=4, n_kv_heads=4, max_seq_len=64)
    return _nanogpt(cfg, 1e-3, 12, compiled=False), text


def expert(project: Path, checkout: Path | None) -> tuple[Peer, Text]:
    """nanoGPT as an expert runs it: the project's BPE pieces, context 256, batch 16; compiled bfloat16 where native."""
    text = pieces(project)
    cfg = ModelConfig(vocab_size=text.vocab, dim=256, n_layers=3, n_heads=4, n_kv_heads=4, max_seq_len=256)
    return _nanogpt(cfg, 3e-3, 16, compiled=True), text


def _nanogpt(cfg: ModelConfig, lr: float, rows: int, compiled: bool) -> Peer:
    model = GPT(cfg)
    for p in model.parameters():
        if p.ndim >= 2:
            nn.init.normal_(p, std=0.02)
    optimizer = _adamw(model, lr, (0.9, 0.99))
    loss = _half(model) if compiled else model
    return Peer(model, loss, optimizer, _cosine(optimizer, lr, 100), rows, cfg.max_seq_len)


def nanochat(project: Path, checkout: Path | None) -> tuple[Peer, Text]:
    """Its GPT (value embeddings, QK norm, ReLU squared), Muon and AdamW with its learning rates, 65 % warm-down.

    In bfloat16 where that is native.
    """
    os.environ.setdefault("NANOCHAT_DTYPE", "bfloat16" if native_bfloat16(torch.device("cpu")) else "float32")
    sys.path.insert(0, str(checkout))
    from nanochat.gpt import GPT as Theirs
    from nanochat.gpt import GPTConfig

    text = pieces(project)
    model = Theirs(GPTConfig(256, text.vocab, 3, 4, 4, 256, "L"))
    model.init_weights()
    optimizer = model.setup_optimizer()

    def schedule(step: int, steps: int) -> None:
        down = round(0.65 * steps)
        share = min(1.0, (step + 1) / 40, (steps - step) / max(1, down))
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * share

    quote_library_folders()
    inner = torch.compile(model, dynamic=False)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (inner if x.shape == (16, 256) else model)(x, torch.where(y == IGNORED, -1, y))

    return Peer(model, loss, optimizer, schedule, 16, 256, clip=0.0), text


def litgpt(project: Path, checkout: Path | None) -> tuple[Peer, Text]:
    """Its Llama-like GPT, AdamW with its pre-training defaults (4e-4, betas .9 .95, cosine to a tenth)."""
    sys.path.insert(0, str(checkout))
    from litgpt.config import Config
    from litgpt.model import GPT as Theirs

    text = pieces(project)
    cfg = Config(
        block_size=256,
        n_layer=3,
        n_embd=256,
        n_head=4,
        padded_vocab_size=text.vocab,
        vocab_size=text.vocab,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        norm_class_name="RMSNorm",
        mlp_class_name="LLaMAMLP",
        intermediate_size=512,
    )
    model = Theirs(cfg)
    model.apply(model._init_weights)
    optimizer = _adamw(model, 4e-4, (0.9, 0.95))

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(model(x).flatten(0, 1).float(), y.flatten(), ignore_index=IGNORED)

    return Peer(model, _half(loss), optimizer, _cosine(optimizer, 4e-4, 100), 16, 256), text


PEERS = {"readme": readme, "expert": expert, "nanochat": nanochat, "litgpt": litgpt}
