"""The trials of a sweep: each in a worktree of its own, with its share of the machine.

Several train at once. A stage that trials share runs once: the others get the result from DVC's run cache.
"""

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed, State

from flows.artifacts import create_artifact
from flows.graph import Node, plan
from flows.names import short_run_id, squeezed
from flows.outcome import RunFailed
from flows.runner import StageStopped
from flows.search import Rung, Sweep, Trial, best, is_number, value_of
from flows.shares import Share, shares
from flows.stages import StageRunner, retry_options
from flows.sweep_tracking import SweepTracking
from flows.workspace import save_experiment, workspace
from foundry.config import ConfigError
from foundry.utils.flow_runs import TrialNote


class Search:
    """All trials of one sweep.

    Args:
        commit: what each of them builds.
    """

    tracking: SweepTracking

    def __init__(self, home: Path, options: Sweep, commit: str) -> None:
        self.home, self.options, self.commit, self.name = home, options, commit, short_run_id()
        self.running: set[StageRunner] = set()
        self.locks: dict[str, threading.Lock] = {}
        self.slots: SimpleQueue[Share] = SimpleQueue()
        self.cancelled = False
        self.refused: ConfigError | None = None  # what is wrong with every trial

    def run_trials(self) -> Trial:
        """Runs all rungs; returns the best trial.

        Raises:
            RunFailed: if no trial was trained to its end.
            ConfigError: if the first report shows that no trial will have the metric.
        """
        points, tried = self.options.points(), []
        for number, rung in enumerate(self.options.rungs()):
            trials = self._run_rung(number, rung, points[: rung.trials])
            tried += trials
            done = sorted((t for t in trials if t.metric is not None), key=lambda t: t.metric)
            points = [{k: v for k, v in t.parameters.items() if k not in rung.resource} for t in done]
        self._publish(tried)
        found = best(tried)
        if found is None:
            raise RunFailed(f"none of the {len(tried)} trials was trained to its end: {tried[0].state}")
        return found

    def _run_rung(self, number: int, rung: Rung, points: list[dict[str, Any]]) -> list[Trial]:
        if not points:
            return []
        self.slots = SimpleQueue()
        for share in shares(min(self.options.at_once, len(points))):
            self.slots.put(share)
        last = plan(self.home, self.options.target)[-1]  # a killed trial is retried by the policy of the target stage
        retried = run_trial.with_options(**retry_options(last, lambda: self.cancelled))
        prefix = f"sweep-{self.name}-" + (f"{number}-" if self.options.method == "halving" else "")
        futures = []
        try:
            for i, point in enumerate(points):
                trial = Trial(f"{prefix}{i}", number, {**point, **rung.resource})
                words = " ".join(f"{k.rpartition('.')[2]}={_short(v)}" for k, v in trial.parameters.items())
                named = retried.with_options(task_run_name=words[:100] or trial.name)
                futures.append((trial, named.submit(self, trial)))
            wait([f for _, f in futures])
            if self.refused:
                raise self.refused
        except BaseException:
            self.stop()
            raise
        done = {t.name: t for t in self.tracking.trials}
        return [
            done.get(trial.name) or replace(trial, state=squeezed(f.state.message or f.state.name))
            for trial, f in futures
        ]

    @contextmanager
    def slot(self) -> Iterator[Share]:
        """Waits for a free share of the machine, and gives it to one trial."""
        share = self.slots.get()
        try:
            yield share
        finally:
            self.slots.put(share)

    @contextmanager
    def stoppable(self, runner: StageRunner) -> Iterator[StageRunner]:
        """While the block runs, `stop` stops the runner, too."""
        self.running.add(runner)
        try:
            if self.cancelled:
                runner.stop()
            yield runner
        finally:
            self.running.discard(runner)

    def stop(self) -> None:
        self.cancelled = True
        with ThreadPoolExecutor(max(1, len(self.running))) as pool:
            list(pool.map(StageRunner.stop, list(self.running)))

    def lock(self, node: Node, point: dict[str, Any]) -> threading.Lock:
        """One lock per stage and parameters that it reads: one trial builds it, the others find it in the run cache."""
        same = {k: v for k, v in point.items() if k.partition(".")[0] in node.reads}
        return self.locks.setdefault(f"{node.name} {json.dumps(same, sort_keys=True)}", threading.Lock())

    def _publish(self, trials: list[Trial]) -> None:
        ranked = sorted(trials, key=lambda t: (t.metric is None, -t.rung, t.metric or 0))
        table = [
            {
                self.options.metric: t.metric,
                **{k: _short(v) for k, v in t.parameters.items()},
                "experiment": t.name,
                "state": t.state,
            }
            for t in ranked
        ]
        create_artifact(create_table_artifact, "trials", table=table, description="best first")
        if found := best(trials):
            words = "\n".join(f"- `{k}`: {v}" for k, v in found.parameters.items())
            text = (
                f"**{found.metric:.4f}** {self.options.metric}\n\n{words}\n\nTo have it in your folder: "
                f"`dvc exp apply {found.name}`, then `dvc repro`. All trials: `dvc exp show`, `foundry runs`."
            )
            create_artifact(create_markdown_artifact, "best", markdown=text, description="the best trial")


@task(name="trial", cache_policy=NO_CACHE, persist_result=False)
def run_trial(search: Search, trial: Trial) -> State:
    """Builds a trial's stages in a worktree, saves them as a DVC experiment, and adds the trial to the sweep's."""
    log, o = get_run_logger().info, search.options
    with search.slot() as share:
        if search.cancelled:
            return Cancelled(message="the sweep was cancelled")
        with workspace(search.home, trial.name, search.commit, log) as ws:
            ws.set({**o.values(), **trial.parameters})
            nodes = plan(ws.root, o.target)
            env = {
                "DVC_EXP_NAME": trial.name,
                "DVC_EXP_BASELINE_REV": ws.commit,
                "FOUNDRY_FLOW_RUN_ID": str(flow_run.id),
                **({"FOUNDRY_PARENT_RUN_ID": search.tracking.run_id} if search.tracking.run_id else {}),
            }
            try:
                with search.stoppable(StageRunner(ws, env, share)) as runner:
                    for node in nodes:
                        with search.lock(node, trial.parameters):
                            runner.execute(node.name, log, o.time_limits_s.get(node.name, node.policy.timeout_s))
            except StageStopped as e:
                return Cancelled(message=str(e)) if search.cancelled else Failed(name="TimedOut", message=str(e))
            try:
                metric = metric_of(ws.root / o.report, o.metric)
            except ConfigError as e:
                search.refused = e
                search.stop()
                raise
            built = [n.name for n in nodes]
            trained = json.loads((ws.root / "reports/train.json").read_text("utf-8")) if "train" in built else {}
            note = TrialNote(
                commit=ws.commit,
                isolated=ws.isolated,
                flow_run=str(flow_run.id),
                trial=trial.name,
                parameters=trial.parameters,
                metric=metric,
            )
            ws.keep(note, built)
            save_experiment(ws, trial.name, built)
    done = replace(trial, metric=metric, fingerprint=trained.get("fingerprint"), state="done")
    search.tracking.trials.append(done)
    search.tracking.nest(done)
    return Completed(message=f"{o.metric} {metric:.4f}")


def metric_of(path: Path, name: str) -> float:
    """A number of a report by its dotted name.

    Raises:
        ConfigError: if the report has no such value; no other trial will have it.
        RunFailed: if it is not a finite number.
    """
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value = value_of(report, name, path.name)
    if not is_number(value) or not math.isfinite(value):
        raise RunFailed(f"{name} of {path.name} is not a finite number, but {value!r}")
    return float(value)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
