"""The flow `sweep`: a search over parameters. Each trial is a DVC experiment and an MLflow run nested in the sweep's.

`halving` gives many trials few steps and the best ones more: after each rung the best 1/eth go on with `eta` times the resource, trained anew, since a schedule
of another length is another training (Jamieson & Talwalkar 2016, arXiv:1502.07943).
"""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import name_of_run
from flows.options import Build, Recipe
from flows.outcome import reported
from flows.pretrain import build, clear_up, run_id
from flows.record import Record, close_record
from flows.runner import end_with_worker
from flows.search import Sweep
from flows.trials import Search
from flows.workspace import commit_named, one_at_a_time, tell_uncommitted, workspace


def _name_of_run() -> str:
    options = flow_run.parameters.get("options") or {}
    options = options if isinstance(options, Sweep) else Sweep.model_validate(options)
    return name_of_run(f"sweep {options.method} {' '.join(options.space)}")


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
@reported
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
