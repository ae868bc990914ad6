"""The flow `sweep`: a search over parameters. Each trial is a DVC experiment and an MLflow run nested in the sweep's.

A trial works in a worktree of its own, so several train at once; stages that trials share run once, since DVC's run cache gives the others the result.
`halving` gives many trials few steps and the best ones more: after each rung the best 1/eth go on with `eta` times the resource, trained anew, since a schedule
of another length is another training (Jamieson & Talwalkar 2016, arXiv:1502.07943).
"""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field, model_validator

from flows.graph import Node, plan
from flows.options import Build, Recipe, Target
from flows.pages import show
from flows.pretrain import build, clear_up, run_id
from flows.runner import Stopped, end_with_worker
from flows.search import Axis, grid, random_points, rungs
from flows.shares import Share, shares
from flows.stages import Crew, retrying
from flows.workspace import Workspace, one_at_a_time, save_experiment, workspace
from foundry.config import load_config
from foundry.config.profiles import with_values
from foundry.tracking.nested import begin_parent, end_parent, nest
from foundry.tracking.settings import reason

EXAMPLE = {"train.lr": {"choices": [0.001, 0.003]}}


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
    trials: int = Field(8, ge=1, le=10_000, description="of random and halving; grid takes every combination")
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
        if self.method == "grid" and (bad := [k for k, axis in self.space.items() if axis.choices is None]):
            raise ValueError(
                f"grid needs choices for every key; {', '.join(bad)} has a range: take random, or list choices"
            )
        if self.method == "halving" and self.resource in self.space:
            raise ValueError(f"{self.resource} is what halving sets: take it out of the space")
        return self

    def points(self) -> list[dict[str, Any]]:
        """Of the first rung."""
        if self.method == "grid":
            return grid(self.space)
        points = random_points(self.space, self.trials, self.seed)
        return [{**p, self.resource: self.least} for p in points] if self.method == "halving" else points

    def check(self, root: Path) -> None:
        """As of a build, for every point that is going to be tried."""
        super().check(root)
        for point in self.points():
            words = ", ".join(f"{k}={v}" for k, v in point.items())
            with_values(root / "params.yaml", {**self.values(), **point}, f"the trial {words}")


def _name_of_run() -> str:
    options = flow_run.parameters.get("options") or {}
    options = options if isinstance(options, Sweep) else Sweep.model_validate(options)
    return f"sweep {options.method} {' '.join(options.space)}"[:80]


@flow(
    name="sweep",
    flow_run_name=_name_of_run,
    log_prints=True,
    on_crashed=[clear_up],
    task_runner=ThreadPoolTaskRunner(max_workers=64),
)
def sweep(options: Sweep = Sweep()) -> dict[str, Any]:
    """Searches parameters; tells the best trial and, by choice, builds and promotes it."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    search = Search(home, options)
    with one_at_a_time(home, log):
        search.begin()
        status = "KILLED"
        try:
            best = search.run()
            status = "FINISHED"
        except Exception:
            status = "FAILED"
            raise
        finally:
            search.end(status)
        if options.promote:
            with workspace(home, run_id(), options.revision, log) as ws:
                ws.set({**options.values(), **best["parameters"]})
                build(ws, Build(**{**options.model_dump(include=set(Recipe.model_fields)), "target": "all"}))
    return best


class Search:
    """The trials of one sweep."""

    def __init__(self, home: Path, options: Sweep) -> None:
        self.home, self.options, self.rows, self.crews = home, options, [], set()
        self.name = run_id()
        self.locks: dict[str, threading.Lock] = {}
        self.slots: SimpleQueue[Share] = SimpleQueue()
        self.parent: str | None = None
        self.cancelled = False
        runtime = load_config(home / "params.yaml").runtime
        self.experiment, self.tracking = runtime.experiment, runtime.tracking
        # As foundry.tracking.tracking_uri, which asks where this process stands.
        here = f"sqlite:///{home / '.foundry' / 'mlflow.db'}"
        self.uri = runtime.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or here

    def begin(self) -> None:
        """Makes the sweep's run; without a tracker the sweep goes on without one."""
        if not self.tracking:
            return
        o = self.options
        note = f"A {o.method} search over {', '.join(o.space)}. Its trials are nested below; the best one's parameters are tagged `best.…`."
        params = {"method": o.method, "space": {k: a.model_dump(exclude_none=True) for k, a in o.space.items()}}
        try:
            self.parent = begin_parent(self.uri, self.experiment, self.name, params, note)
        except Exception as e:  # the tracker is away: the trials are DVC's experiments all the same
            get_run_logger().warning("no run in MLflow for this sweep: %s", reason(e))

    def run(self) -> dict[str, Any]:
        """All trials; the best one. Raises RuntimeError if none came to an end."""
        o = self.options
        if o.method == "halving":
            self._halving()
        else:
            self._rung(o.points())
        self.publish()
        done = [r for r in self.rows if r["metric"] is not None]
        if not done:
            raise RuntimeError(
                f"none of the {len(self.rows)} trials came to an end: {self.rows[0]['state'] if self.rows else ''}"
            )
        last = max(r["rung"] for r in done)
        return min((r for r in done if r["rung"] == last), key=lambda r: r["metric"])

    def _halving(self) -> None:
        o = self.options
        points = random_points(o.space, o.trials, o.seed)
        for number, (count, value) in enumerate(rungs(len(points), o.least, o.eta)):
            rows = self._rung([{**p, o.resource: value} for p in points[:count]], number)
            rows = sorted((r for r in rows if r["metric"] is not None), key=lambda r: r["metric"])
            points = [{k: v for k, v in r["parameters"].items() if k != o.resource} for r in rows]

    def _rung(self, points: list[dict[str, Any]], number: int = 0) -> list[dict[str, Any]]:
        self.slots = SimpleQueue()
        for share in shares(min(self.options.at_once, len(points))):
            self.slots.put(share)
        futures = []
        last = plan(self.home, self.options.target)[-1]  # what is killed is tried again as the target stage says
        again = trial.with_options(**retrying(last, lambda: self.cancelled))
        try:
            for i, point in enumerate(points):
                name = (
                    f"sweep-{self.name}-{number}-{i}" if self.options.method == "halving" else f"sweep-{self.name}-{i}"
                )
                words = " ".join(f"{k.rpartition('.')[2]}={_short(v)}" for k, v in point.items())
                futures.append(
                    (name, point, again.with_options(task_run_name=words[:100] or name).submit(self, name, point))
                )
            wait([f for _, _, f in futures])
        except BaseException:
            self.stop()
            raise
        rows = []
        for name, point, future in futures:
            state = future.state
            value = state.result(raise_on_failure=False) if state.is_completed() else None
            told = "done" if value is not None else (state.message or state.name)[-300:]
            rows.append({"trial": name, "rung": number, "parameters": point, "metric": value, "state": told})
        self.rows += rows
        return rows

    @contextmanager
    def slot(self) -> Iterator[Share]:
        """Waits for its turn; the part of the machine that a trial has to itself."""
        share = self.slots.get()
        try:
            yield share
        finally:
            self.slots.put(share)

    def stop(self) -> None:
        self.cancelled = True
        with ThreadPoolExecutor(max(1, len(self.crews))) as pool:
            list(pool.map(Crew.stop, list(self.crews)))

    def lock(self, stage: str) -> threading.Lock:
        """Of trials that need the same stage one builds it; the others find it in the run cache. Trainings run side by side."""
        return self.locks.setdefault(stage, threading.Lock())

    def publish(self) -> None:
        ranked = sorted(self.rows, key=lambda r: (-r["rung"], r["metric"] is None, r["metric"] or 0))
        table = [
            {
                self.options.metric: r["metric"],
                **{k: _short(v) for k, v in r["parameters"].items()},
                "experiment": r["trial"],
                "state": r["state"],
            }
            for r in ranked
        ]
        show(create_table_artifact, "trials", table=table, description="best first")
        if ranked and (best := ranked[0])["metric"] is not None:
            words = "\n".join(f"- `{k}`: {v}" for k, v in best["parameters"].items())
            text = (
                f"**{best['metric']:.4f}** {self.options.metric}\n\n{words}\n\nTo have it in your folder: `dvc exp apply {best['trial']}`, then `dvc repro`. "
                "All trials: `dvc exp show`, `foundry runs`."
            )
            show(create_markdown_artifact, "best", markdown=text, description="the best trial")

    def end(self, status: str) -> None:
        if self.parent is None:
            return
        done = [r for r in self.rows if r["metric"] is not None]
        best = min(done, key=lambda r: (-r["rung"], r["metric"])) if done else None
        metrics = (
            {f"best_{self.options.metric.rpartition('.')[2]}": best["metric"], "trials": len(self.rows)} if best else {}
        )
        tags = (
            {f"best.{k}": str(v) for k, v in best["parameters"].items()} | {"best.experiment": best["trial"]}
            if best
            else {}
        )
        try:
            end_parent(self.uri, self.parent, metrics, tags, status)
        except Exception as e:
            get_run_logger().warning("the sweep's run in MLflow stays open: %s", reason(e))


@task(cache_policy=NO_CACHE, persist_result=False)
def trial(search: Search, name: str, point: dict[str, Any]):
    """One set of parameters: its stages in a worktree, saved as a DVC experiment; returns the metric."""
    log, o = get_run_logger().info, search.options
    with search.slot() as share, ExitStack() as stack:
        if search.cancelled:
            return Cancelled(message="the sweep was cancelled")
        ws = stack.enter_context(workspace(search.home, name, o.revision, log))
        ws.set({**o.values(), **point})
        env = {"DVC_EXP_NAME": name, "DVC_EXP_BASELINE_REV": ws.commit, "FOUNDRY_FLOW_RUN_ID": str(flow_run.id)}
        crew = Crew(ws, env | ({"FOUNDRY_PARENT_RUN_ID": search.parent} if search.parent else {}), share)
        search.crews.add(crew)
        try:
            nodes = plan(ws.root, o.target)
            for node in nodes:
                _stage(search, crew, node, log)
        except Stopped as e:
            return Cancelled(message=str(e)) if search.cancelled else Failed(name="TimedOut", message=str(e))
        finally:
            search.crews.discard(crew)
        value = metric_of(ws.root / o.report, o.metric)
        save_experiment(ws, name, [n.name for n in nodes])
        facts = {"flow_run": str(flow_run.id), "trial": name, "parameters": point, "metric": value}
        ws.keep(facts, built=[n.name for n in nodes])
        if search.parent:
            _nest(search, ws, name)
    return Completed(name="Completed", message=f"{o.metric} {value:.4f}", data=value)


def _stage(search: Search, crew: Crew, node: Node, log: Any) -> None:
    limit = search.options.time_limits_s.get(node.name, node.policy.get("timeout_s"))
    if node.name == "train":
        crew.run(node.name, log, limit)
        return
    with search.lock(node.name):
        crew.run(node.name, log, limit)


def _nest(search: Search, ws: Workspace, name: str) -> None:
    facts = json.loads((ws.root / "reports/train.json").read_text(encoding="utf-8"))
    try:
        nest(search.uri, search.experiment, facts["fingerprint"], search.parent, name)
    except Exception as e:
        get_run_logger().warning("the trial's run is not nested in MLflow: %s", reason(e))


def metric_of(path: Path, name: str) -> float:
    """A number of a report by its dotted name.

    Raises:
        RuntimeError: naming what is there.
    """
    at: Any = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for key in name.split("."):
        found = sorted(at) if isinstance(at, dict) else []
        if key not in found:
            raise RuntimeError(f"{path.name} has no {name!r}; {key!r} is not among {', '.join(found) or 'nothing'}")
        at = at[key]
    return float(at)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
