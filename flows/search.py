"""The form of a sweep, the points of its space (all combinations or random ones), and rungs of successive halving."""

import itertools
import json
import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from flows.graph import plan, reports_of
from flows.options import AnyTarget, Form, Recipe
from flows.workspace import commit_named, file_at
from foundry.config import ConfigError, parse_config, parse_yaml
from foundry.config.profiles import with_values

EXAMPLE = {"train.lr": {"choices": [0.001, 0.003]}}
MOST = 1000  # trials: every point is checked before the first one starts


class Axis(Form):
    """One parameter's values: a list, or a range of numbers."""

    choices: list[Any] | None = Field(None, min_length=1, description="the values themselves")
    low: float | None = Field(None, allow_inf_nan=False, description="smallest value of a range")
    high: float | None = Field(None, allow_inf_nan=False, description="largest value of a range")
    log: bool = Field(False, description="uniform in the logarithm")
    integer: bool = Field(False, description="integers only")

    @model_validator(mode="after")
    def _one_kind(self) -> "Axis":
        ranged = self.low is not None and self.high is not None
        if (self.choices is None) == (not ranged) or (
            self.choices is not None and (self.low is not None or self.high is not None)
        ):
            raise ValueError("give either choices, or low and high")
        if ranged and not self.low < self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        if ranged and self.integer and math.ceil(self.low) > math.floor(self.high):
            raise ValueError(f"there is no integer between {self.low} and {self.high}")
        if ranged and self.log and self.low <= 0:
            raise ValueError(f"a logarithmic range must begin above 0, got low = {self.low}")
        return self

    def draw(self, rng: random.Random) -> Any:
        if self.choices is not None:
            return rng.choice(self.choices)
        if self.log:
            value = math.exp(rng.uniform(math.log(self.low), math.log(self.high)))
        else:
            value = rng.uniform(self.low, self.high)
        if self.integer:
            return min(max(round(value), math.ceil(self.low)), math.floor(self.high))
        return float(f"{value:.4g}")


def grid(space: dict[str, Axis]) -> list[dict[str, Any]]:
    """Every combination of the choices, each once; the last key changes fastest."""
    points = [dict(zip(space, v, strict=True)) for v in itertools.product(*(a.choices for a in space.values()))]
    return [p for i, p in enumerate(points) if p not in points[:i]]


def random_points(space: dict[str, Axis], n: int, seed: int) -> list[dict[str, Any]]:
    """`n` different points, or fewer if the space has fewer."""
    rng, points = random.Random(seed), []
    for _ in range(20 * n):
        point = {key: axis.draw(rng) for key, axis in space.items()}
        if point not in points:
            points.append(point)
        if len(points) == n:
            break
    return points


@dataclass(frozen=True)
class Rung:
    """A round of a search.

    Attributes:
        trials: how many of the points are tried.
        resource: what is added to each point, {dotted key: value}; empty without halving.
    """

    trials: int
    resource: dict[str, int] = field(default_factory=dict)


def halving(trials: int, key: str, least: int, eta: int) -> list[Rung]:
    """The rungs of successive halving (Jamieson & Talwalkar 2016, arXiv:1502.07943), until one trial is left."""
    table = [Rung(trials, {key: least})]
    while table[-1].trials > 1:
        table.append(Rung(max(1, table[-1].trials // eta), {key: table[-1].resource[key] * eta}))
    return table


@dataclass(frozen=True)
class Trial:
    """One point in one rung.

    Attributes:
        name: of its DVC experiment and of its folder in `.foundry/runs/`.
        rung: number of the rung, from 0.
        parameters: its point with the resource of the rung, by dotted key.
        metric: None unless it was trained to its end.
        fingerprint: of its training; None if it has none.
        state: `done`, or why it was not trained to its end.
    """

    name: str
    rung: int
    parameters: dict[str, Any]
    metric: float | None = None
    fingerprint: str | None = None
    state: str = ""


def best(trials: list[Trial]) -> Trial | None:
    """The trial with the smallest metric, of the last rung that has any."""
    done = [t for t in trials if t.metric is not None]
    return min(done, key=lambda t: (-t.rung, t.metric)) if done else None


class Sweep(Recipe):
    """The search; `target`, `profile` and `overrides` apply to every trial."""

    target: AnyTarget = Field(
        "train", title="Target stage", description="last stage of a trial; its report has the metric"
    )
    method: Literal["grid", "random", "halving"] = Field("grid", description="grid: every combination of the choices")
    space: dict[str, Axis] = Field(
        default_factory=lambda: {k: Axis(**v) for k, v in EXAMPLE.items()},
        min_length=1,
        json_schema_extra={"default": EXAMPLE},  # what the form shows is what runs
        description='by dotted key: {"train.lr": {"low": 1e-4, "high": 1e-2, "log": true}, '
        '"model.n_layers": {"choices": [2, 4]}}',
    )
    trials: int = Field(8, ge=1, le=MOST, description="how many points; grid takes every combination")
    at_once: int = Field(
        1, ge=1, le=64, description="trials that run at the same time; each has its share of the cores and GPUs"
    )
    resource: str = Field("train.steps", description="halving: the parameter that says how long a trial trains")
    least: int = Field(100, ge=1, description="halving: its value in the first rung, at most that of params.yaml")
    eta: int = Field(3, ge=2, le=10, description="halving: the best 1/eta continue, with eta times the resource")
    seed: int = Field(0, ge=0, description="of the random points")
    report: str = Field(
        "reports/train.json",
        description="file of the target stage that has the metric; of fine-tuning reports/chat_sft.json",
    )
    metric: str = Field("val_bits_per_byte", description="dotted name in that file; smaller is better")
    promote: bool = Field(
        False, description="build the best trial to the end: exported, registered, judged by the gate"
    )

    @model_validator(mode="after")
    def _check(self) -> "Sweep":
        if bad := [k for k in self.space if k.startswith("runtime.")]:
            raise ValueError(f"{', '.join(bad)}: a key of `runtime` changes no result; take it out of the space")
        if self.method == "grid":
            if bad := [k for k, axis in self.space.items() if axis.choices is None]:
                raise ValueError(
                    f"grid needs choices for every key; {', '.join(bad)} has a range: use random, or list choices"
                )
            if (count := math.prod(len(axis.choices) for axis in self.space.values())) > MOST:
                raise ValueError(f"{count} combinations, {MOST} are allowed: use random, or fewer choices")
        if self.method == "halving" and self.resource in self.space:
            raise ValueError(f"{self.resource} is what halving sets: take it out of the space")
        return self

    def rungs(self) -> list[Rung]:
        count = len(self.points())
        return halving(count, self.resource, self.least, self.eta) if self.method == "halving" else [Rung(count)]

    def points(self) -> list[dict[str, Any]]:
        return grid(self.space) if self.method == "grid" else random_points(self.space, self.trials, self.seed)

    def check(self, root: Path) -> None:
        """As for a build, for every point that will be tried, with the smallest and the largest resource.

        Raises:
            ConfigError: if a trial cannot work, none will have the metric, or the first rung is longer than a build.
        """
        super().check(root)
        self._check_metric(root, commit_named(root, self.revision))
        rungs = self.rungs()
        for rung in [rungs[0], rungs[-1]][: len(rungs)]:
            for point in self.points():
                values = {**point, **rung.resource}
                words = ", ".join(f"{k}={v}" for k, v in values.items())
                with_values(root / "params.yaml", {**self.values(), **values}, f"the trial {words}")
        if self.method == "halving":
            self._check_least(root)

    def described(self, root: Path) -> str:
        """The rungs of halving in one line, beside the resource of a build."""
        rungs = ", ".join(f"{r.trials} x {r.resource[self.resource]}" for r in self.rungs())
        return f"halving, trials x {self.resource}: {rungs}; a build has {self._full_resource(root)}"

    def _full_resource(self, root: Path) -> Any:
        """The resource of a build: its value in params.yaml with the profile and the overrides."""
        text = with_values(root / "params.yaml", self.values())
        value = parse_config(parse_yaml(text, "params.yaml"), "params.yaml").model_dump()
        for key in self.resource.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        return value

    def _check_least(self, root: Path) -> None:
        """Refuses a first rung that trains longer than a build: halving is there to be cheaper than full trainings."""
        full = self._full_resource(root)
        if is_number(full) and self.least > full:
            factor = self.rungs()[-1].resource[self.resource] // self.least
            raise ConfigError(
                f"least: the first rung would have {self.resource}={self.least}, more than the {full} of a build "
                "(params.yaml with the overrides), so that halving would cost more than full trainings. Choose less: "
                f"the last rung has {factor} times `least`, so least={max(1, int(full // factor))} ends near {full}"
            )

    def _check_metric(self, root: Path, commit: str) -> None:
        """Refuses a report that no stage of a trial writes, and a metric that the commit's report does not have."""
        stages = [n.name for n in plan(root, self.target)]
        reports = [r for r in reports_of(root, stages) if r.endswith(".json")]
        if self.report not in reports:
            raise ConfigError(
                f"report: the stages up to {self.target} write {', '.join(reports) or 'no report'}; "
                f"{self.report!r} is not among them"
            )
        if text := file_at(root, commit, self.report):
            value = value_of(json.loads(text), self.metric, self.report)
            if value is not None and not is_number(value):
                found = type(value).__name__
                raise ConfigError(f"metric: {self.metric!r} of {self.report} is not a number, but {found}")


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def value_of(report: Any, name: str, where: str) -> Any:
    """A value of a report by its dotted name.

    Raises:
        ConfigError: if there is none; the message lists the names that there are.
    """
    for key in name.split("."):
        found = sorted(report) if isinstance(report, dict) else []
        if key not in found:
            raise ConfigError(f"metric: {where} has no {name!r}; {key!r} is not among {', '.join(found) or 'nothing'}")
        report = report[key]
    return report
