"""The part `decode`: new tokens per second, greedy, in bfloat16, at the shapes of the GPU profiles.

Sides, with one row: our generator, which replays a CUDA graph for every token; the same without fixed shapes, as on a
CPU; transformers' `generate` as it is; and with a static cache, for which it compiles. With several rows: our engine
with as many requests at once, and `generate`. The models have the same shape and random weights; a text is a
prompt of 32 tokens and so many new ones, and reading the prompt is in its time.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import nn

from benchmarks.gpu.bench import Bench, ask_all, children
from benchmarks.gpu.child import Clock
from benchmarks.gpu.record import Number
from benchmarks.gpu.shapes import profiles, shape
from benchmarks.gpu.turns import take_turns
from foundry.utils.device import get_device

OURS, EAGER, PLAIN, STATIC = "foundry", "foundry-eager", "transformers", "transformers-static"
PROMPT, NEW = 32, 128
ROWS = 16  # of the comparison with several


def run(bench: Bench) -> None:
    several = profiles(bench.tiny)
    for i, profile in enumerate(several):
        bench.attempt(measure, profile, Clock(bench.clock.left / (len(several) - i)))


def measure(bench: Bench, profile: str, clock: Clock) -> None:
    options = {"profile": profile, "device": bench.card.device, "tiny": bench.tiny}
    kinds = {OURS: ("decode:Ours", {"graph": True, **options}), EAGER: ("decode:Ours", {"graph": False, **options})}
    kinds |= {PLAIN: ("decode:Generate", {"static": False, **options})}
    kinds |= {STATIC: ("decode:Generate", {"static": True, **options})}
    seconds, rounds = (0.1, 2) if bench.tiny else (2.0, 5)
    with children(kinds, bench.folder / "logs") as sides:
        failed: dict[str, str] = {}
        prepared = ask_all(sides, "prepare", clock.left / 2, failed, together=True)
        for rows, names in ((1, tuple(sides)), (ROWS, (OURS, PLAIN))):
            alive = [name for name in names if name in prepared]

            def turn(name: str, rows: int = rows):
                return lambda: sides[name].ask("turn", max(30.0, clock.left), seconds=seconds, rows=rows)

            turns = take_turns({name: turn(name) for name in alive}, rounds, clock)
            facts = {name: {"prepared_in_seconds": prepared[name]} for name in alive}
            name = f"decode {profile}, {rows} row{'s' if rows > 1 else ''}"
            bench.compare(name, "tokens/s", turns, facts, {n: failed[n] for n in names if n in failed})
            put_ratio(bench, name)
        put_equality(bench, profile, sides[OURS].ask("equal_tokens", max(30.0, clock.left)))


def put_ratio(bench: Bench, name: str) -> None:
    medians = {side.name: side.median for side in bench.comparisons[name].sides if side.median is not None}
    if OURS in medians and PLAIN in medians:
        ratio = Number(
            name=f"{name}: against generate",
            value=round(medians[OURS] / medians[PLAIN], 4),
            unit="times",
            how="medians of new tokens per second; transformers' generate with its own settings",
            required=3.0,
        )
        bench.put(ratio)


def put_equality(bench: Bench, profile: str, found: dict[str, int]) -> None:
    number = Number(
        name=f"decode {profile}: greedy tokens equal to the eager way in float32",
        value=found["equal"] / found["tokens"],
        unit="share",
        how=f"{found['equal']} of {found['tokens']} tokens before the first that differs",
        required=1.0,
    )
    bench.put(number)


class NoText:
    """A tokenizer's facts without its texts: the generator works with ids, and no id ends a text."""

    eos_id = -1

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size

    def is_control(self, token: int) -> bool:
        return False

    def stream(self) -> NoText:
        return self

    def add(self, token: int) -> str:
        return ""


class _Side:
    def __init__(self, profile: str, device: str, tiny: bool) -> None:
        self.config, self.device, self.tiny = shape(profile, tiny).model, torch.device(device), tiny
        self.new = 16 if tiny else NEW
        torch.manual_seed(0)

    def ready(self) -> None:
        """Nothing but what the first call does: imports, CUDA's context."""

    def prepare(self) -> float:
        """Makes the model and writes one text of each kind; returns the seconds of it."""
        begin = time.perf_counter()
        with torch.device(self.device):
            self.model = self.make().to(torch.bfloat16).eval()
        for rows in self.kinds():
            self.text(rows)
        return round(time.perf_counter() - begin, 2)

    def turn(self, seconds: float, rows: int) -> float:
        """New tokens per second of texts for at least so many seconds; all rows count."""
        self._sync()
        begin, n = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            self.text(rows)
            self._sync()
            n += 1
        return n * rows * self.new / (time.perf_counter() - begin)

    def make(self) -> nn.Module:
        raise NotImplementedError

    def kinds(self) -> tuple[int, ...]:
        """How many rows its texts have."""
        return (1, ROWS)

    def text(self, rows: int) -> Any:
        raise NotImplementedError

    def prompt(self, rows: int) -> torch.Tensor:
        prompt = torch.arange(3, 3 + PROMPT, device=self.device) * 7 % self.config.vocab_size
        return prompt.expand(rows, PROMPT)

    def _sync(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class Ours(_Side):
    def __init__(self, graph: bool, **rest: Any) -> None:
        super().__init__(**rest)
        self.device, self.graph = get_device(self.device.type), graph

    def make(self) -> nn.Module:
        from foundry.models import MiniLLM

        model = MiniLLM(self.config.model_copy(update={"zero_init": False}))
        with torch.no_grad():
            for block in model.layers:  # so that a layer's output matters to the next token
                for linear in (block.attention.wo, block.ffn.w_down):
                    linear.weight.normal_(std=linear.in_features**-0.5)
        return model

    def kinds(self) -> tuple[int, ...]:
        return (1, ROWS) if self.graph else (1,)

    def text(self, rows: int) -> Any:
        return self._one(self.new) if rows == 1 else self._several(rows)

    def equal_tokens(self) -> dict[str, int]:
        """How many greedy tokens in float32 are those of the way without fixed shapes, up to the first difference."""
        self.model.float()
        texts = {}
        for self.graph in (False, True):
            self.__dict__.pop("_generator", None)
            texts[self.graph] = self._one(self.new)
        same = [a == b for a, b in zip(texts[False], texts[True], strict=True)]
        return {"equal": ([*same, False]).index(False), "tokens": len(same)}

    def _one(self, new: int) -> list[int]:
        from foundry.inference import Generator

        if "_generator" not in self.__dict__:
            self._generator = Generator(self.model, NoText(self.config.vocab_size), self.device)
            self._generator.fixed_shapes = self.graph
        return list(self._generator.generate_ids(self.prompt(1)[0].tolist(), new, temperature=0.0))

    def _several(self, rows: int) -> Any:
        from foundry.config.sampling import Sampling
        from foundry.inference.engine import Engine, deliver
        from foundry.inference.request import Request
        from foundry.inference.runner import Runner

        if "_batch" not in self.__dict__:
            self._batch = Engine(Runner(self.model, rows), NoText(self.config.vocab_size), shared_tokens=0)
        request = Request(tuple(self.prompt(1)[0].tolist()), Sampling(0.0), self.new)
        for _ in range(rows):
            self._batch.add(self._batch.answer(request, lambda event: None))
        while not self._batch.idle:
            deliver(self._batch.step())


class Generate(_Side):
    """transformers' `generate`."""

    def __init__(self, static: bool, **rest: Any) -> None:
        super().__init__(**rest)
        self.static = static

    def make(self) -> nn.Module:
        from benchmarks.throughput import llama

        return llama(self.config)

    def kinds(self) -> tuple[int, ...]:
        return (1,) if self.static else (1, ROWS)

    @torch.inference_mode()
    def text(self, rows: int) -> Any:
        prompt = self.prompt(rows)
        options = {"cache_implementation": "static"} if self.static else {}
        tokens = self.model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=self.new,
            min_new_tokens=self.new,
            do_sample=False,
            pad_token_id=0,
            **options,
        )
        if tokens.shape[1] != PROMPT + self.new:
            raise RuntimeError(f"generate wrote {tokens.shape[1] - PROMPT} tokens in place of {self.new}")
        return tokens.cpu()
