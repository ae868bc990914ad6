"""Turns of several sides, as many as the clock allows.

`benchmarks.rounds` is for machines that have all day: here the time may end, or a side, and what was measured counts.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.gpu.child import Clock, SideFailed
from benchmarks.rounds import NOISY


@dataclass
class Turns:
    """What the sides returned, turn by turn: rates, of which more is better.

    Attributes:
        repeated: rounds that were disturbed and do not count.
        problems: why a side has no further turns.
    """

    values: dict[str, list[float]]
    repeated: int = 0
    problems: dict[str, str] = field(default_factory=dict)

    def spread(self, name: str) -> float:
        """How much faster the best turn is than the worst."""
        values = self.values[name]
        return max(values) / min(values) - 1


def take_turns(
    sides: Mapping[str, Callable[[], float]],
    rounds: int,
    clock: Clock,
    after_round: Callable[[Turns], object] = lambda turns: None,
) -> Turns:
    """Runs rounds in which every side has one turn; every second round in the opposite order.

    A side that fails has no further turn, the others go on. While a side's spread is over 25 %, the round that is
    furthest behind is repeated, at most as often as there are rounds. No round is begun for which the clock
    has no time, except the first.
    """
    turns = Turns({name: [] for name in sides})
    longest, played = 0.0, 0
    while played == 0 or clock.left > 1.2 * longest:
        alive = [name for name in sides if name not in turns.problems]
        if not alive:
            break
        done = min(len(turns.values[name]) for name in alive) >= rounds
        if done and (turns.repeated == rounds or not _drop_worst(turns, alive)):
            break
        begin = time.monotonic()
        for name in alive if played % 2 == 0 else alive[::-1]:
            try:
                turns.values[name].append(sides[name]())
            except SideFailed as e:
                turns.problems[name] = str(e)
        longest = max(longest, time.monotonic() - begin)
        played += 1
        after_round(turns)
    return turns


def _drop_worst(turns: Turns, alive: list[str]) -> bool:
    """Removes the round with the turn that is furthest behind its side's best; false if no side is noisy."""
    far = [
        (max(turns.values[name]) / value, i)
        for name in alive
        if turns.spread(name) > NOISY
        for i, value in enumerate(turns.values[name])
    ]
    if not far:
        return False
    worst = max(far)[1]
    for name in alive:
        del turns.values[name][worst]
    turns.repeated += 1
    return True
