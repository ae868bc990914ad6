"""What a part works with, and where it puts what it finds: every finding is written to the report at once."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.gpu.child import TOLD, Child, Clock, SideFailed
from benchmarks.gpu.record import Card, Comparison, Number, Outcome, Side
from benchmarks.gpu.turns import Turns


@dataclass
class Bench:
    """One part at work.

    Attributes:
        folder: for data and logs; `write_data` has been there.
        save: writes the report with what is here.
    """

    card: Card
    folder: Path
    clock: Clock
    save: Callable[[Bench], None]
    comparisons: dict[str, Comparison] = field(default_factory=dict)
    numbers: dict[str, Number] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def tiny(self) -> bool:
        return self.card.tiny

    def put(self, *found: Comparison | Number | Outcome) -> None:
        """Adds findings to the report, or replaces those of the same name."""
        for one in found:
            if isinstance(one, Outcome):
                self.outcomes[one.test] = one
            else:
                (self.comparisons if isinstance(one, Comparison) else self.numbers)[one.name] = one
        if found:
            self.save(self)

    def problem(self, text: str) -> None:
        """Adds what went wrong to the report."""
        self.problems.append(text)
        print(f"problem: {text}", flush=True)
        self.save(self)

    def attempt(self, work: Callable[..., None], *arguments: Any) -> None:
        """Does a piece of the part; if it fails, the report says so and the part continues."""
        try:
            work(self, *arguments)
        except Exception:
            self.problem(traceback.format_exc()[-TOLD:])

    def compare(
        self,
        name: str,
        unit: str,
        turns: Turns,
        facts: Mapping[str, dict[str, Any]],
        failed: Mapping[str, str] | None = None,
    ) -> Comparison:
        """The comparison of what the sides returned, in the report.

        Args:
            facts: of each side.
            failed: sides that had no turn, and why.
        """
        failed = failed or {}
        problems = {**failed, **turns.problems}
        sides = [
            Side.of(side, turns.values.get(side, []), facts=facts.get(side, {}), problem=problems.get(side))
            for side in dict.fromkeys([*facts, *turns.values, *failed])
        ]
        found = Comparison(name=name, unit=unit, sides=sides, repeated=turns.repeated)
        self.put(found)
        return found


@contextlib.contextmanager
def children(sides: Mapping[str, tuple[str, dict[str, Any]]], folder: Path) -> Iterator[dict[str, Child]]:
    """The processes of the sides, which end with the block.

    Args:
        sides: {name: (`module:Class`, options)}.
    """
    with contextlib.ExitStack() as stack:
        made = {}
        for name, (where, options) in sides.items():
            made[name] = Child(where, options, folder)
            stack.callback(made[name].close)
        yield made


def ask_all(
    sides: Mapping[str, Child],
    method: str,
    timeout: float,
    failed: dict[str, str],
    together: bool = False,
    **arguments: dict[str, Any],
) -> dict[str, Any]:
    """The answers of the sides that have not failed; who fails now is added to `failed`.

    Args:
        timeout: seconds for all of them.
        together: all at the same time.
        arguments: {argument: {side: value}}.
    """
    answers: dict[str, Any] = {}
    clock = Clock(timeout)
    alive = {name: side for name, side in sides.items() if name not in failed}

    def wait(name: str) -> None:
        try:
            answers[name] = alive[name].wait(clock.left)
        except SideFailed as e:
            failed[name] = str(e)

    for name, side in alive.items():
        try:
            side.begin(method, **{k: v[name] for k, v in arguments.items()})
        except SideFailed as e:
            failed[name] = str(e)
            continue
        if not together:
            wait(name)
    if together:
        for name in alive:
            if name not in failed:
                wait(name)
    return answers
