"""Rounds of a benchmark: the sides take turns, and a round that something disturbed is repeated.

A round is one turn of every side; every second round takes the sides in the opposite order, so that a machine that
becomes slower or faster favours none of them. A side's spread is how much slower its worst round is than its best.
While a spread is over 25 %, the round that is furthest behind is reported and repeated as a whole, at most as often as
there are rounds. A spread that remains is reported with the figures.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

from foundry.utils.device import cpu_cores, processor

NOISY = 0.25  # a larger spread is not the sides' own
INSTRUCTION_SETS = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "AVX512-BF16", "amx_bf16": "AMX-BF16"}

T = TypeVar("T")


class Measure(NamedTuple):
    """What is compared: its unit, and whether more of it is better (a rate) or less of it (a time)."""

    unit: str
    more_is_better: bool


SECONDS = Measure("s", more_is_better=False)


@dataclass(frozen=True)
class Rounds(Generic[T]):
    """The rounds that count.

    Attributes:
        results: {side: what each round's turn returned}.
        values: {side: the compared number of each round}.
        repeated: rounds that were disturbed and do not count.
    """

    measure: Measure
    results: dict[str, list[T]]
    values: dict[str, list[float]]
    repeated: int

    def best(self, side: str) -> float:
        return (max if self.measure.more_is_better else min)(self.values[side])

    def median(self, side: str) -> float:
        return statistics.median(self.values[side])

    def spread(self, side: str) -> float:
        """How much slower the worst round is than the best: 0.25 for 1.25 against 1 s, or for 80 against 100 MB/s."""
        return max(self.values[side]) / min(self.values[side]) - 1

    def ratio(self, side: str, base: str) -> float:
        """The median over the rounds of the side's number divided by the base's of the same round."""
        return statistics.median(a / b for a, b in zip(self.values[side], self.values[base], strict=True))

    def print(self, title: str, base: str, notes: Mapping[str, str] | None = None) -> None:
        """Prints median, best and spread of each side, and its ratio to the base in the same rounds and of the bests.

        Args:
            notes: {side: what follows its numbers}.
        """
        wide = max(len(title), *map(len, self.values)) + 2
        unit = self.measure.unit
        print(
            f"\n{title:{wide}}{f'median {unit}':>18}{f'best {unit}':>18}{'spread':>8}{'ratio':>9}{'of bests':>10}",
            flush=True,
        )
        for side in self.values:
            print(
                f"{side:{wide}}{number(self.median(side)):>18}{number(self.best(side)):>18}{self.spread(side):>8.0%}"
                f"{self.ratio(side, base):>9.3g}{self.best(side) / self.best(base):>10.3g}"
                f"{'  ' + notes[side] if notes and side in notes else ''}",
                flush=True,
            )
        print(self.verdict(), flush=True)

    def verdict(self) -> str:
        """How many rounds there were, how many were repeated, and which sides' spread remained too large."""
        n = len(next(iter(self.values.values())))
        text = f"{n} round{'s' if n != 1 else ''}, {self.repeated or 'none'} repeated"
        if n == 1:
            return f"{text}; one round cannot show whether the machine is noisy"
        if noisy := [side for side in self.values if self.spread(side) > NOISY]:
            return f"{text}; NOISY, do not quote: the spread of {', '.join(noisy)} is over {NOISY:.0%}"
        return text


def number(value: float) -> str:
    """Four digits, or all before the point."""
    digits = len(str(int(abs(value)))) if abs(value) >= 1 else 1
    return f"{value:,.{max(0, 4 - digits)}f}"


def machine() -> str:
    """The processor, its instruction sets that matter to a benchmark, the cores, and the load of the last minute."""
    name, flags = processor()
    sets = ", ".join(label for flag, label in INSTRUCTION_SETS.items() if flag in flags)
    return f"{name}{f' ({sets})' if sets else ''}, {cpu_cores()} cores, load {os.getloadavg()[0]:.2f} at the start"


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """Adds the option `--rounds`."""
    parser.add_argument("--rounds", type=_positive, default=default, help="turns of each side (default: %(default)s)")


def _positive(text: str) -> int:
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, got {value}")
    return value


def take_turns(
    sides: Mapping[str, Callable[[], T]], rounds: int, measure: Measure, value: Callable[[T], float] = float
) -> Rounds[T]:
    """Prints the machine, and runs the sides in turns.

    Args:
        sides: {name: one turn of that side}.
        rounds: how many count.
        value: the number to compare, of what a turn returns.
    """
    print(machine(), flush=True)
    names, kept, repeated, played = list(sides), [], 0, 0
    while True:
        while len(kept) < rounds:
            order = names if played % 2 == 0 else names[::-1]
            kept.append({name: sides[name]() for name in order})
            played += 1
        done = Rounds(
            measure,
            {name: [r[name] for r in kept] for name in names},
            {name: [value(r[name]) for r in kept] for name in names},
            repeated,
        )
        behind = [
            (max(v / done.best(name), done.best(name) / v) - 1, i, name)
            for name, values in done.values.items()
            for i, v in enumerate(values)
        ]
        most, i, name = max(behind)
        if most <= NOISY or repeated == rounds:
            return done
        print(
            f"noisy: {name} was {most:.0%} slower than in its best round "
            f"({number(done.values[name][i])} against {number(done.best(name))} {measure.unit}); the round is repeated",
            flush=True,
        )
        del kept[i]
        repeated += 1
