"""Points of a search space: every combination, at random, and how successive halving shares out the resource."""

import itertools
import math
import random
from typing import Any

from pydantic import Field, model_validator

from flows.options import Form


class Axis(Form):
    """One parameter's values: a list, or a range of numbers."""

    choices: list[Any] | None = Field(None, min_length=1, description="the values themselves")
    low: float | None = Field(None, allow_inf_nan=False, description="smallest value of a range")
    high: float | None = Field(None, allow_inf_nan=False, description="largest value of a range")
    log: bool = Field(False, description="even over orders of magnitude")
    whole: bool = Field(False, description="whole numbers only")

    @model_validator(mode="after")
    def _one_kind(self) -> "Axis":
        ranged = self.low is not None and self.high is not None
        if (self.choices is None) == (not ranged) or (
            self.choices is not None and (self.low is not None or self.high is not None)
        ):
            raise ValueError("give either choices, or low and high")
        if ranged and not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if ranged and self.whole and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"there is no whole number between {self.low} and {self.high}")
        if ranged and self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range begins above 0, got low = {self.low}")
        return self

    def draw(self, rng: random.Random) -> Any:
        if self.choices is not None:
            return rng.choice(self.choices)
        value = (
            math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
            if self.log
            else rng.uniform(self.low, self.high)
        )
        if self.whole:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return float(f"{value:.4g}")


def grid(space: dict[str, Axis]) -> list[dict[str, Any]]:
    """Every combination of the choices, each once, the last key fastest."""
    points = [dict(zip(space, v, strict=True)) for v in itertools.product(*(a.choices for a in space.values()))]
    return [p for i, p in enumerate(points) if p not in points[:i]]


def random_points(space: dict[str, Axis], n: int, seed: int) -> list[dict[str, Any]]:
    """At most `n` different points; fewer where the space has fewer."""
    rng, points = random.Random(seed), []
    for _ in range(20 * n):
        point = {key: axis.draw(rng) for key, axis in space.items()}
        if point not in points:
            points.append(point)
        if len(points) == n:
            break
    return points


def rungs(trials: int, least: int, eta: int) -> list[tuple[int, int]]:
    """(trials, resource) of each rung of successive halving, until one trial is left."""
    table = [(trials, least)]
    while table[-1][0] > 1:
        count, resource = table[-1]
        table.append((max(1, count // eta), resource * eta))
    return table
