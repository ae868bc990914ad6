"""The part `evaluate`: how fast held-out documents are scored, and how far the card's numbers are from the CPU's.

The sides score the same documents of random words with the same random weights at the shape of `gpu-124m`: the card in
float32, as the evaluate stage does, the card in bfloat16, and the CPU in float32.
"""

from __future__ import annotations

import math
import time
from itertools import cycle, islice
from typing import Any

import torch

from benchmarks.gpu.bench import Bench, ask_all, children
from benchmarks.gpu.record import Number
from benchmarks.gpu.shapes import shape
from benchmarks.gpu.turns import take_turns
from foundry.utils.device import get_device

PROFILE = "gpu-124m"
DOCUMENTS = 24
TIMES = 8  # that a card scores them in a turn, which one time hardly keeps busy
REFERENCE = "reference: CPU float32"


def run(bench: Bench) -> None:
    card = bench.card.device
    options = {"tiny": bench.tiny, "folder": str(bench.folder)}
    wanted = {
        f"{card} float32": (card, "float32"),
        f"{card} bfloat16": (card, "bfloat16"),
        REFERENCE: ("cpu", "float32"),
    }
    kinds = {
        name: ("evaluate:Scoring", {"device": device, "precision": precision, **options})
        for name, (device, precision) in wanted.items()
    }
    failed: dict[str, str] = {}
    found: dict[str, dict[str, Any]] = {}
    with children(kinds, bench.folder / "logs") as sides:
        prepared = ask_all(sides, "prepare", bench.clock.left, failed, together=True)

        def turn(name: str):
            def scored() -> float:
                found[name] = sides[name].ask("turn", max(30.0, bench.clock.left))
                return found[name]["tokens_per_second"]

            return scored

        turns = take_turns({name: turn(name) for name in prepared}, 2 if bench.tiny else 3, bench.clock)
    facts = {name: {"bits_per_byte": bits_per_byte(found[name])} for name in found}
    bench.compare(f"score documents, {PROFILE}", "tokens/s", turns, facts, failed)
    for name in found:
        if name != REFERENCE and REFERENCE in found:
            put_differences(bench, name, found[name], found[REFERENCE])


def bits_per_byte(scored: dict[str, Any]) -> float:
    return sum(scored["nats"]) / math.log(2) / sum(scored["bytes"])


def put_differences(bench: Bench, name: str, found: dict[str, Any], reference: dict[str, Any]) -> None:
    """How far a side's numbers are from the CPU's."""
    whole = abs(bits_per_byte(found) - bits_per_byte(reference))
    largest = max(abs(a / b - 1) for a, b in zip(found["nats"], reference["nats"], strict=True))
    exact = name.endswith("float32")
    bench.put(
        Number(
            name=f"score: {name}, difference from the CPU",
            value=float(f"{whole:.3g}"),
            unit="bits per byte",
            how=f"of {bits_per_byte(reference):.4f}; the reports print four digits",
            required=5e-5 if exact else None,
            at_most=True,
        ),
        Number(
            name=f"score: {name}, largest difference of a document",
            value=float(f"{largest:.3g}"),
            unit="of its nats",
            how=f"over {len(found['nats'])} documents",
            at_most=True,
        ),
    )


class Scoring:
    """One device and precision."""

    def __init__(self, device: str, precision: str, tiny: bool, folder: str) -> None:
        self.device, self.precision = get_device(device), getattr(torch, precision)
        self.tiny, self.folder = tiny, folder

    def prepare(self) -> None:
        from pathlib import Path

        from foundry.data.tokens.shards import Shards
        from foundry.models import MiniLLM

        config = shape(PROFILE, self.tiny).model.model_copy(update={"zero_init": False})
        torch.manual_seed(0)
        self.model = MiniLLM(config)
        with torch.no_grad():
            for block in self.model.layers:  # so that every layer's rounding reaches the result
                for linear in (block.attention.wo, block.ffn.w_down):
                    linear.weight.normal_(std=linear.in_features**-0.5)
        self.model.to(self.device)
        documents = list(Shards(Path(self.folder) / PROFILE / "shards", "val").documents())[:DOCUMENTS]
        self.tokens, self.bytes = [d[0] for d in documents], [d[1] for d in documents]
        self._score(1)

    def turn(self) -> dict[str, Any]:
        """Scores all documents: tokens per second, and nats and bytes of each."""
        begin = time.perf_counter()
        scores = self._score(len(self.tokens) * (1 if self.device.type == "cpu" else TIMES))
        seconds = time.perf_counter() - begin
        return {
            "tokens_per_second": float(scores.tokens.sum() / seconds),
            "nats": scores.nats[: len(self.tokens)].tolist(),
            "bytes": [int(n) for n in self.bytes],
        }

    def _score(self, documents: int):
        from foundry.evaluation.bits_per_byte import score

        tokens = list(islice(cycle(self.tokens), documents))
        scores = score(self.model, tokens, self.model.cfg.max_seq_len, self.precision)
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return scores
