"""Serving: tokens per second of the engine and the server against transformers and llama.cpp.

    python -m benchmarks.serving --size L [--project DIR] [--rounds 5]
    python -m benchmarks.serving --parts formats --project DIR

Parts:

  stream    one text: the engine against transformers' `generate`, in the same number format
  batch     eight texts at once: the same sides
  llamacpp  one text: the engine in bfloat16 and int8 against llama.cpp in bf16 and q8_0
  clients   8 and 32 clients that read streams: `foundry serve` against llama.cpp's server, and with 8 clients against
            FastAPI around `generate`; with the time to the first token
  prefix    32 requests that begin with the same 200 tokens: how many tokens are computed
  ready     seconds from the start of `foundry serve` with the project's export until it is ready
  formats   bits per byte of the project's test text in every number format of `serving.weights`, through the engine's
            own steps, and the difference from float32, paired over the documents, with its 95 % interval

The models have the same shape and random weights. A text is a prompt of 32 tokens and 96 new ones, greedy; reading the
prompt is in its time. DIR is a project in which `make repro` has run.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.gpu.decode import NoText
from benchmarks.rounds import Measure, add_rounds, take_turns
from benchmarks.serving_servers import against_llamacpp, clients, ready
from benchmarks.throughput import SIZES, llama
from foundry.config import ConfigError, ModelConfig
from foundry.config.sampling import Sampling
from foundry.data.tokens.documents import batches, windows
from foundry.data.tokens.shards import Shards
from foundry.inference.engine import Engine, deliver
from foundry.inference.formats import FORMATS, in_format
from foundry.inference.piece import Piece
from foundry.inference.request import Event, Finished, Request
from foundry.inference.runner import Runner
from foundry.models import MiniLLM, load_model
from foundry.utils.bootstrap import bootstrap, percentiles_95
from foundry.utils.targets import IGNORE

PARTS = {"stream": 1, "batch": 8}
PROMPT, NEW = 32, 96
CLIENTS, SHARED = 32, 200
RATE = Measure("tokens/s", more_is_better=True)


def engine(cfg: ModelConfig, weights: str, slots: int, shared_tokens: int | None = None) -> Engine:
    torch.manual_seed(0)
    model, pack = in_format(MiniLLM(cfg), weights)
    return Engine(Runner(model, slots, pack), NoText(cfg.vocab_size), shared_tokens=shared_tokens)


def answer(made: Engine, prompts: list[list[int]], new: int) -> list[Finished]:
    """Continues all prompts at once; how each answer ended."""
    ends: list[Finished] = []

    def listen(event: Event) -> None:
        if isinstance(event, Finished):
            ends.append(event)

    for ids in prompts:
        made.add(made.answer(Request(tuple(ids), Sampling(temperature=0.0), new), listen))
    while not made.idle:
        deliver(made.step())
    return ends


def ours(cfg: ModelConfig, weights: str, rows: int) -> Callable[[], float]:
    made, prompts = engine(cfg, weights, rows, shared_tokens=0), [prompt(cfg)] * rows
    answer(made, prompts, 4)
    return lambda: rate(lambda: answer(made, prompts, NEW), rows)


def theirs(cfg: ModelConfig, weights: str, rows: int) -> Callable[[], float]:
    model = llama(cfg).to(torch.float32 if weights == "float32" else torch.bfloat16).eval()
    ids = torch.tensor([prompt(cfg)] * rows)

    def generate(new: int) -> None:
        options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "pad_token_id": 0}
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), **options)

    generate(4)
    return lambda: rate(lambda: generate(NEW), rows)


def prompt(cfg: ModelConfig) -> list[int]:
    return [3 + 7 * i % (cfg.vocab_size - 3) for i in range(PROMPT)]


def rate(run: Callable[[], object], rows: int) -> float:
    start = time.perf_counter()
    run()
    return rows * NEW / (time.perf_counter() - start)


def prefix(cfg: ModelConfig, weights: str) -> None:
    """Prints how many tokens of prompts were computed and how many copied."""
    made = engine(cfg, weights, CLIENTS)
    common = [3 + 5 * i % (cfg.vocab_size - 3) for i in range(SHARED)]
    answer(made, [[*common, 3 + i] for i in range(CLIENTS)], 4)
    stats = made.stats()
    once = SHARED + CLIENTS
    print(
        f"\n{CLIENTS} requests with {SHARED} common tokens and one of their own: {stats.prompt_tokens:,} tokens "
        f"computed, {stats.cached_tokens:,} copied (without sharing {CLIENTS * (SHARED + 1):,}; {once:,} if more than "
        "whole blocks were shared)"
    )


def formats(project: Path) -> None:
    """Prints the cost of each number format that this machine has kernels for."""
    documents = [(ids, size) for ids, size, _ in Shards(project / "data/shards", "test").documents()]
    sizes = np.array([size for _, size in documents])
    rows = None
    print(f"\n{len(documents)} documents, {sizes.sum():,} bytes")
    exact = np.zeros(len(documents))
    for name in FORMATS:
        model = load_model(project / "artifacts/model")
        context = model.cfg.max_seq_len
        rows = rows or list(batches(windows([ids for ids, _ in documents], context, context, reach_back=True), 1))
        try:
            model, pack = in_format(model, name)
        except ConfigError as e:
            print(f"{name:10} {e}")
            continue
        nats = scored(Runner(model, 1, pack), rows, len(documents))
        exact = nats if name == "float32" else exact
        low, high = percentiles_95(bootstrap(lambda i, d=nats - exact: bits(d[i], sizes[i]), len(sizes), 1000, seed=0))
        print(
            f"{name:10} {bits(nats, sizes):.4f} bits per byte, {bits(nats - exact, sizes):+.5f} "
            f"({low:+.5f} to {high:+.5f})",
            flush=True,
        )


@torch.inference_mode()
def scored(runner: Runner, rows: list, documents: int) -> np.ndarray:
    """Nats of each document by the steps in which the engine reads prompts."""
    nats = np.zeros(documents)
    for (ids,), (targets,), (document,) in rows:
        n = 1 + int(np.flatnonzero(targets != IGNORE)[-1])
        logits = runner.forward([Piece(0, 0, ids[:n].tolist(), prompt=True, wanted=n)]).float()
        y = torch.from_numpy(targets[:n])
        nats[document] += float(F.cross_entropy(logits, y, ignore_index=IGNORE, reduction="sum"))
    return nats


def bits(nats: np.ndarray, sizes: np.ndarray) -> float:
    return float(nats.sum() / math.log(2) / sizes.sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="L", help="shape of benchmarks.throughput (default: L)")
    parser.add_argument("--weights", default="bfloat16", help="number format of the matrices (default: bfloat16)")
    parts = [*PARTS, "llamacpp", "clients", "prefix", "ready", "formats"]
    parser.add_argument("--parts", nargs="+", choices=parts, default=parts, help="default: all")
    parser.add_argument("--project", type=Path, default=Path(), help="default: this folder")
    add_rounds(parser, 5)
    args = parser.parse_args()
    cfg = ModelConfig(vocab_size=8192, **SIZES[args.size][0])
    for part in args.parts:
        match part:
            case "llamacpp":
                against_llamacpp(
                    cfg, args.project, args.rounds, lambda weights: ours(cfg, weights, 1), prompt(cfg), NEW
                )
            case "clients":
                clients(args.size, cfg, args.project, args.rounds)
            case "prefix":
                prefix(cfg, args.weights)
            case "ready":
                ready(args.project, args.rounds)
            case "formats":
                formats(args.project)
            case _:
                rows = PARTS[part]
                sides = {"transformers": theirs(cfg, args.weights, rows), "ours": ours(cfg, args.weights, rows)}
                done = take_turns(sides, args.rounds, RATE)
                done.print(f"{part}, {args.size}, {args.weights}", base="transformers")


if __name__ == "__main__":
    main()
