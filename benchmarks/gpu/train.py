"""The part `train`: tokens per second and share of the peak at the shapes of the GPU profiles, on one card.

Sides: our trainer with the profile's recipe; nanoGPT's algorithm at its best; transformers' Llama in the same loop. All
in bfloat16, compiled. Each side's probe finds the largest micro-batch up to 16,384 tokens that fits beside the weights
of the others. Where a step of the profile takes more than some seconds, steps of fewer micro-batches are measured: the
report says how many tokens, and the shares of the optimizer and the loader are those of the profile's own step.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.bench import Bench, ask_all, children
from benchmarks.gpu.child import Child, Clock
from benchmarks.gpu.record import Comparison, Number, rounded
from benchmarks.gpu.shapes import profiles, shape
from benchmarks.gpu.turns import take_turns
from foundry.models.accounting import count_params

OURS = "foundry"
PEERS = ("nanogpt", "transformers")
ROUNDS = {"gpu-124m": 4, "gpu-1b": 3}
LONGEST_STEP = 8.0  # seconds, as the probe sees it: not compiled
IDLE_BYTES = 13  # of a side that waits, per weight: itself and two moments in float32, and what the allocator keeps
CONTEXT_BYTES = 700 << 20  # of CUDA itself in a process


def run(bench: Bench) -> None:
    bench.attempt(measure_gemm)
    several = profiles(bench.tiny)
    for profile in several:
        last = profile == several[-1]
        bench.attempt(measure, profile, Clock(bench.clock.left * (1.0 if last else 0.42)))  # the larger needs more


def measure_gemm(bench: Bench) -> None:
    """The largest speed of a matrix product in bfloat16, beside which the data sheet's can be seen."""
    with children({"product": ("device:Device", {"device": bench.card.device})}, bench.folder / "logs") as sides:
        n = 512 if bench.tiny else 8192
        turns = take_turns({"product": lambda: sides["product"].ask("gemm", 60, n=n)}, 3, bench.clock)
    bench.compare(f"bfloat16 product of {n} x {n}", "TFLOP/s", turns, {"product": {}})


def measure(bench: Bench, profile: str, clock: Clock) -> None:
    cfg = shape(profile, bench.tiny)
    options = {
        "profile": profile,
        "device": bench.card.device,
        "tiny": bench.tiny,
        "folder": str(bench.folder),
        "share": memory_share(bench.card.memory_gib, count_params(cfg.model), 1 + len(PEERS)),
    }
    kinds = {OURS: ("train_sides:Ours", options)}
    kinds |= {peer: ("train_sides:Peer", {"peer": peer, **options}) for peer in PEERS}
    name, failed = f"train {profile}", {}
    with children(kinds, bench.folder / "logs") as sides:
        ask_all(sides, "ready", clock.left, failed, together=True)
        probes = ask_all(sides, "probe", clock.left, failed)
        rows = step_rows(cfg.train.tokens_per_step // cfg.model.max_seq_len, list(probes.values()))
        chosen = {k: {side: p.get(k) for side, p in probes.items()} for k in ("micro_rows", "recompute")}
        extra = {side: {"loss_chunk": probes[side]["loss_chunk"]} if side == OURS else {} for side in probes}
        prepared = ask_all(
            {s: sides[s] for s in probes},
            "prepare",
            0.8 * clock.left,
            failed,
            together=True,
            rows=dict.fromkeys(probes, rows),
            chosen=extra,
            **chosen,
        )
        facts: dict[str, dict[str, Any]] = {
            side: {**probes[side], "prepared_in_seconds": rounded(seconds)} for side, seconds in prepared.items()
        }
        seconds = 0.2 if bench.tiny else 4.0

        def turn(side: Child):
            return lambda: side.ask("turn", max(30.0, clock.left), seconds=seconds)

        turns = take_turns(
            {side: turn(sides[side]) for side in prepared},
            2 if bench.tiny else ROUNDS[profile],
            clock,
            lambda turns: bench.compare(name, "tokens/s", turns, facts, failed),
        )
        for side, found in ask_all({s: sides[s] for s in prepared}, "facts", 60, dict(turns.problems)).items():
            facts[side] |= {k: v for k, v in found.items() if v is not None}
            if peak := facts[side].get("peak_flops"):
                facts[side]["mfu"] = statistics.median(turns.values[side]) * facts[side]["flops_per_token"] / peak
        found = bench.compare(name, "tokens/s", turns, facts, failed)
        put_numbers(bench, profile, found)
        if problem := {**failed, **turns.problems}.get(OURS):
            bench.problem(f"{name}: {problem}")
        else:
            shares = sides[OURS].ask("shares", max(60.0, clock.left))
            put_shares(bench, profile, found, shares, cfg.train.tokens_per_step)


def memory_share(memory_gib: float | None, params: int, sides: int) -> float:
    """The share of a card that a side may use while the others wait, their weights and moments on the card."""
    if memory_gib is None:
        return 1.0
    total = memory_gib * 2**30
    others = (sides - 1) * (IDLE_BYTES * params + CONTEXT_BYTES)
    return max(0.3, (0.95 * total - others - CONTEXT_BYTES) / total)


def step_rows(rows: int, probes: list[Mapping[str, Any]]) -> int:
    """Sequences of a measured step: the profile's, or fewer where a step of the slowest side takes too long."""
    if not probes:
        return rows
    slowest = max(p["seconds"] / p["micro_rows"] for p in probes)
    most = max(p["micro_rows"] for p in probes)
    while slowest * rows > LONGEST_STEP and rows % 2 == 0 and rows // 2 >= most:
        rows //= 2
    return rows


def put_numbers(bench: Bench, profile: str, found: Comparison) -> None:
    """Shares of the peak, and the ratio to the best peer."""
    speeds = {side.name: side.median for side in found.sides if side.median is not None}
    ours = next(side for side in found.sides if side.name == OURS)
    if ours.median is None:
        return
    flops = ours.median * ours.facts["flops_per_token"]
    if "mfu" in ours.facts:
        mfu = Number(
            name=f"{profile}: share of the peak (MFU)",
            value=round(ours.facts["mfu"], 4),
            unit="share",
            how="operations of our step per second / the data sheet's dense bfloat16 peak (on a CPU a measured one)",
            required=0.5,
            moonshot=0.6,
            where="H100",
        )
        bench.put(mfu)
    product = next((c for n, c in bench.comparisons.items() if n.startswith("bfloat16 product")), None)
    if product and product.sides[0].best:
        share = Number(
            name=f"{profile}: share of the measured product",
            value=round(flops / (product.sides[0].best * 1e12), 4),
            unit="share",
            how="operations of our step per second / those of a large bfloat16 product",
        )
        bench.put(share)
    if peers := {n: v for n, v in speeds.items() if n != OURS}:
        best = max(peers, key=peers.get)
        ratio = Number(
            name=f"{profile}: speed against the best peer",
            value=round(ours.median / peers[best], 4),
            unit="times",
            how=f"medians of tokens/s; the best peer is {best}",
            required=1.1,
        )
        bench.put(ratio)


def put_shares(bench: Bench, profile: str, found: Comparison, seconds: dict[str, float], tokens: int) -> None:
    """Shares of the profile's own step, which has `tokens`, that are not the model's forward and backward pass."""
    ours = next(side for side in found.sides if side.name == OURS)
    optimizers = sum(v for k, v in seconds.items() if k not in ("loader", "logging"))
    measured = ours.facts["tokens_per_step"]
    step = measured / ours.median
    whole = max(step, optimizers + (step - optimizers) * tokens / measured)
    muon = sum(v for k, v in seconds.items() if k not in ("loader", "logging", "AdamW"))
    # The loader's time is that of the measured batch; the profile's has more rows.
    feeding = seconds["loader"] * tokens / measured + seconds["logging"]
    each = ", ".join(f"{name} {1000 * value:.2f}" for name, value in seconds.items())
    bench.put(
        Number(
            name=f"{profile}: Muon's share of a step",
            value=rounded(muon / whole),
            unit="share",
            how=f"milliseconds per step: {each}; the profile's step {1000 * whole:.0f}",
            required=0.03,
            at_most=True,
        ),
        Number(
            name=f"{profile}: loader's and logging's share of a step",
            value=rounded(feeding / whole),
            unit="share",
            how="host time of a batch, its copy and a logged step, as if nothing overlapped with the GPU",
            required=0.01,
            at_most=True,
        ),
    )
