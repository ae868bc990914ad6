"""The trials of a sweep: each in a worktree of its own, with its share of the machine.

Several train at once. A stage that trials share runs once, since DVC's run cache gives the others the result.
"""

import json
import math
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.futures import wait
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed

from flows.graph import Node, plan
from flows.names import squeezed
from flows.outcome import RunFailed
from flows.pages import show
from flows.pretrain import run_id
from flows.record import Record, best
from flows.runner import Stopped
from flows.search import Sweep, is_number, value_of
from flows.shares import Share, shares
from flows.stages import Crew, retrying
from flows.workspace import save_experiment, workspace
from foundry.config import ConfigError


class Search:
    """All trials of one sweep.

    Args:
        commit: what each of them builds.
    """

    record: Record

    def __init__(self, home: Path, options: Sweep, commit: str) -> None:
        self.home, self.options, self.commit, self.name = home, options, commit, run_id()
        self.crews: set[Crew] = set()
        self.locks: dict[str, threading.Lock] = {}
        self.slots: SimpleQueue[Share] = SimpleQueue()
        self.cancelled = False
        self.refused: ConfigError | None = None  # what is wrong with every trial

    def run(self) -> dict[str, Any]:
        """Runs all; the best one.

        Raises:
            RunFailed: if none came to an end.
            ConfigError: if the first report shows that none will have the metric.
        """
        points, tried = self.options.points(), []
        for number, (count, more) in enumerate(self.options.rungs()):
            rows = self._rung([{**p, **more} for p in points[:count]], number)
            tried += rows
            done = sorted((r for r in rows if r["metric"] is not None), key=lambda r: r["metric"])
            points = [{k: v for k, v in r["parameters"].items() if k not in more} for r in done]
        self._publish(tried)
        found = best(tried)
        if found is None:
            raise RunFailed(f"none of the {len(tried)} trials came to an end: {tried[0]['state']}")
        return found

    def _rung(self, points: list[dict[str, Any]], number: int) -> list[dict[str, Any]]:
        if not points:
            return []
        self.slots = SimpleQueue()
        for share in shares(min(self.options.at_once, len(points))):
            self.slots.put(share)
        last = plan(self.home, self.options.target)[-1]  # what is killed is tried again as the target stage says
        again = trial.with_options(**retrying(last, lambda: self.cancelled))
        rung = f"{number}-" if self.options.method == "halving" else ""
        futures = []
        try:
            for i, point in enumerate(points):
                row = {"trial": f"sweep-{self.name}-{rung}{i}", "rung": number, "parameters": point, "metric": None}
                words = " ".join(f"{k.rpartition('.')[2]}={_short(v)}" for k, v in point.items())
                one = again.with_options(task_run_name=words[:100] or row["trial"])
                futures.append((row, one.submit(self, row)))
            wait([f for _, f in futures])
            if self.refused:
                raise self.refused
        except BaseException:
            self.stop()
            raise
        ended = {r["trial"]: r for r in self.record.rows}
        return [
            ended.get(row["trial"], {**row, "state": squeezed(f.state.message or f.state.name)}) for row, f in futures
        ]

    @contextmanager
    def slot(self) -> Iterator[Share]:
        """Waits for its turn; the part of the machine that a trial has to itself."""
        share = self.slots.get()
        try:
            yield share
        finally:
            self.slots.put(share)

    @contextmanager
    def crew(self, crew: Crew) -> Iterator[Crew]:
        """Known to `stop` while it works."""
        self.crews.add(crew)
        try:
            if self.cancelled:
                crew.stop()
            yield crew
        finally:
            self.crews.discard(crew)

    def stop(self) -> None:
        self.cancelled = True
        with ThreadPoolExecutor(max(1, len(self.crews))) as pool:
            list(pool.map(Crew.stop, list(self.crews)))

    def lock(self, node: Node, point: dict[str, Any]) -> threading.Lock:
        """Of trials that need the same stage with the same parameters one builds it; the others find it in the run cache."""
        same = {k: v for k, v in point.items() if k.partition(".")[0] in node.reads}
        return self.locks.setdefault(f"{node.name} {json.dumps(same, sort_keys=True)}", threading.Lock())

    def _publish(self, rows: list[dict[str, Any]]) -> None:
        ranked = sorted(rows, key=lambda r: (r["metric"] is None, -r["rung"], r["metric"] or 0))
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
        if found := best(rows):
            words = "\n".join(f"- `{k}`: {v}" for k, v in found["parameters"].items())
            text = (
                f"**{found['metric']:.4f}** {self.options.metric}\n\n{words}\n\nTo have it in your folder: `dvc exp apply {found['trial']}`, then `dvc repro`. "
                "All trials: `dvc exp show`, `foundry runs`."
            )
            show(create_markdown_artifact, "best", markdown=text, description="the best trial")


@task(cache_policy=NO_CACHE, persist_result=False)
def trial(search: Search, row: dict[str, Any]):
    """One set of parameters: its stages in a worktree, saved as a DVC experiment; told to the sweep's record.

    Args:
        row: its name, rung and parameters.
    """
    log, o, name = get_run_logger().info, search.options, row["trial"]
    with search.slot() as share:
        if search.cancelled:
            return Cancelled(message="the sweep was cancelled")
        with workspace(search.home, name, search.commit, log) as ws:
            ws.set({**o.values(), **row["parameters"]})
            env = {"DVC_EXP_NAME": name, "DVC_EXP_BASELINE_REV": ws.commit, "FOUNDRY_FLOW_RUN_ID": str(flow_run.id)}
            parent = {"FOUNDRY_PARENT_RUN_ID": search.record.run_id} if search.record.run_id else {}
            nodes = plan(ws.root, o.target)
            try:
                with search.crew(Crew(ws, env | parent, share)) as crew:
                    for node in nodes:
                        with search.lock(node, row["parameters"]):
                            limit = o.time_limits_s.get(node.name, node.policy.get("timeout_s"))
                            crew.run(node.name, log, limit)
            except Stopped as e:
                return Cancelled(message=str(e)) if search.cancelled else Failed(name="TimedOut", message=str(e))
            try:
                value = metric_of(ws.root / o.report, o.metric)
            except ConfigError as e:
                search.refused = e
                search.stop()
                raise
            facts = ws.root / "reports/train.json"
            known = json.loads(facts.read_text(encoding="utf-8")) if "train" in {n.name for n in nodes} else {}
            built = [n.name for n in nodes]
            ws.keep(
                {"flow_run": str(flow_run.id), "trial": name, "parameters": row["parameters"], "metric": value}, built
            )
            save_experiment(ws, name, built)
    done = {**row, "metric": value, "fingerprint": known.get("fingerprint"), "state": "done"}
    search.record.rows.append(done)
    search.record.nest(done)
    return Completed(message=f"{o.metric} {value:.4f}")


def metric_of(path: Path, name: str) -> float:
    """A number of a report by its dotted name.

    Raises:
        ConfigError: if the report has no such value; no other trial will have it.
        RunFailed: if it is no finite number.
    """
    report = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    value = value_of(report, name, path.name)
    if not is_number(value) or not math.isfinite(value):
        raise RunFailed(f"{name} of {path.name} is no finite number, but {value!r}")
    return float(value)


def _short(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value
