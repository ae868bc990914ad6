"""The form of a sweep, and the points of its space: every combination, at random, and how successive halving shares out the resource."""

import itertools
import json
import math
import random
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from flows.graph import plan, reports_of
from flows.options import Form, Recipe, Target
from flows.workspace import commit_named, file_at
from foundry.config import ConfigError
from foundry.config.profiles import with_values

EXAMPLE = {"train.lr": {"choices": [0.001, 0.003]}}
MOST = 1000  # trials: every point is checked before the first one starts


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


class Sweep(Recipe):
    """The search; `target`, `profile` and `overrides` hold for every trial."""

    target: Target = Field(
        "train", title="Target stage", description="last stage of a trial; its report has the metric"
    )
    method: Literal["grid", "random", "halving"] = Field("grid", description="grid: every combination of the choices")
    space: dict[str, Axis] = Field(
        default_factory=lambda: {k: Axis(**v) for k, v in EXAMPLE.items()},
        min_length=1,
        json_schema_extra={"default": EXAMPLE},  # what the form shows is what runs
        description='by dotted key: {"train.lr": {"low": 1e-4, "high": 1e-2, "log": true}, "model.n_layers": {"choices": [2, 4]}}',
    )
    trials: int = Field(8, ge=1, le=MOST, description="of random and halving; grid takes every combination")
    at_once: int = Field(
        1, ge=1, le=64, description="trials that run at the same time; each has its share of the cores and GPUs"
    )
    resource: str = Field("train.steps", description="halving: the parameter that says how long a trial trains")
    least: int = Field(100, ge=1, description="halving: its value in the first rung")
    eta: int = Field(3, ge=2, le=10, description="halving: the best 1/eta go on, with eta times the resource")
    seed: int = Field(0, ge=0, description="of the random points")
    report: str = Field("reports/train.json", description="file of the target stage that has the metric")
    metric: str = Field("val_bits_per_byte", description="dotted name in that file; smaller is better")
    promote: bool = Field(False, description="build the best one to the end: exported, registered, judged by the gate")

    @model_validator(mode="after")
    def _check(self) -> "Sweep":
        if bad := [k for k in self.space if k.startswith("runtime.")]:
            raise ValueError(f"{', '.join(bad)}: what stands in `runtime` changes no result; nothing to search there")
        if self.method == "grid":
            if bad := [k for k, axis in self.space.items() if axis.choices is None]:
                raise ValueError(
                    f"grid needs choices for every key; {', '.join(bad)} has a range: take random, or list choices"
                )
            if (count := math.prod(len(axis.choices) for axis in self.space.values())) > MOST:
                raise ValueError(f"{count} combinations, {MOST} are allowed: take random, or fewer choices")
        if self.method == "halving" and self.resource in self.space:
            raise ValueError(f"{self.resource} is what halving sets: take it out of the space")
        return self

    def rungs(self) -> list[tuple[int, dict[str, Any]]]:
        """(how many trials, what each of them adds to its point), of one rung after the other."""
        points = len(self.points())
        if self.method != "halving":
            return [(points, {})]
        return [(count, {self.resource: value}) for count, value in rungs(points, self.least, self.eta)]

    def points(self) -> list[dict[str, Any]]:
        return grid(self.space) if self.method == "grid" else random_points(self.space, self.trials, self.seed)

    def check(self, root: Path) -> None:
        """As of a build, for every point that is going to be tried, with the least and the most of the resource."""
        super().check(root)
        self._check_metric(root, commit_named(root, self.revision))
        ladder = self.rungs()
        for more in [ladder[0][1], ladder[-1][1]][: len(ladder)]:
            for point in self.points():
                values = {**point, **more}
                words = ", ".join(f"{k}={v}" for k, v in values.items())
                with_values(root / "params.yaml", {**self.values(), **values}, f"the trial {words}")

    def _check_metric(self, root: Path, commit: str) -> None:
        """The report is one of the stages that a trial runs, and the one in the commit has the metric, if there is one."""
        stages = [n.name for n in plan(root, self.target)]
        reports = [r for r in reports_of(root, stages) if r.endswith(".json")]
        if self.report not in reports:
            raise ConfigError(
                f"report: the stages up to {self.target} write {', '.join(reports) or 'no report'}; {self.report!r} is not among them"
            )
        if text := file_at(root, commit, self.report):
            value = value_of(json.loads(text), self.metric, self.report)
            if value is not None and not is_number(value):
                raise ConfigError(f"metric: {self.metric!r} of {self.report} is no number, but {type(value).__name__}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_of(report: Any, name: str, where: str) -> Any:
    """A value of a report by its dotted name.

    Raises:
        ConfigError: naming what is there.
    """
    for key in name.split("."):
        found = sorted(report) if isinstance(report, dict) else []
        if key not in found:
            raise ConfigError(f"metric: {where} has no {name!r}; {key!r} is not among {', '.join(found) or 'nothing'}")
        report = report[key]
    return report
