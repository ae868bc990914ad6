"""The flow `sweep`: a search over parameters. Each trial is a DVC experiment and an MLflow run nested in the sweep's.

`halving` gives many trials few steps and the best ones more: after each rung the best 1/eth go on with `eta` times the resource, trained anew, since a schedule
of another length is another training (Jamieson & Talwalkar 2016, arXiv:1502.07943).
"""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

import math
from pathlib import Path
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field, model_validator

from flows.options import Build, Recipe, Target
from flows.pretrain import build, clear_up, run_id
from flows.record import Record, close_record
from flows.runner import end_with_worker
from flows.search import Axis, grid, random_points, rungs
from flows.trials import Search
from flows.workspace import commit_named, one_at_a_time, tell_uncommitted, workspace
from foundry.config.profiles import with_values

EXAMPLE = {"train.lr": {"choices": [0.001, 0.003]}}
MOST = 1000  # trials: every point is checked before the first one starts


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
        commit_named(root, self.revision)
        ladder = self.rungs()
        for more in [ladder[0][1], ladder[-1][1]][: len(ladder)]:
            for point in self.points():
                values = {**point, **more}
                words = ", ".join(f"{k}={v}" for k, v in values.items())
                with_values(root / "params.yaml", {**self.values(), **values}, f"the trial {words}")


def _name_of_run() -> str:
    options = flow_run.parameters.get("options") or {}
    options = options if isinstance(options, Sweep) else Sweep.model_validate(options)
    return f"sweep {options.method} {' '.join(options.space)}"[:80]


def close_up(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of a sweep whose process was killed: its worktrees go, and its run in MLflow ends, if MLflow is there."""
    clear_up(flow, flow_run, state)
    close_record(project_root(), str(flow_run.id)[:8])


@flow(
    name="sweep",
    flow_run_name=_name_of_run,
    log_prints=True,
    on_crashed=[close_up],
    task_runner=ThreadPoolTaskRunner(max_workers=64),
)
def sweep(options: Sweep = Sweep()) -> dict[str, Any]:
    """Searches parameters; tells the best trial and, by choice, builds and promotes it."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    commit = commit_named(home, options.revision)  # of all trials, also if somebody commits meanwhile
    if options.revision == "HEAD":
        tell_uncommitted(home, commit, log)
    with one_at_a_time(home, log):
        search = Search(home, options, commit)
        with Record(home, run_id(), options) as search.record:
            best = search.run()
        if options.promote:
            found = Build(
                **options.model_dump(include=set(Recipe.model_fields) - {"target", "revision", "others"}),
                revision=commit,
                others={**options.others, **best["parameters"]},
            )
            with workspace(home, run_id(), commit, log) as ws:
                ws.set(found.values())
                build(ws, found)
    return best
