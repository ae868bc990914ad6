"""The flow `sweep`: a search over parameters. Each trial is a DVC experiment and an MLflow run nested in the sweep's.

`halving` gives many trials few steps and the best ones more: after each rung the best 1/eta continue with `eta` times
the resource. They train from scratch, since a schedule of another length is another training (Jamieson & Talwalkar
2016, arXiv:1502.07943).
"""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from typing import Any

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner

from flows.names import name_of_run, short_run_id
from flows.options import Build, Recipe
from flows.outcome import fail_with_message
from flows.pretrain import build, remove_worktrees
from flows.runner import end_with_worker
from flows.search import Sweep, Trial
from flows.sweep_tracking import SweepTracking, close_sweep
from flows.trials import Search
from flows.workspace import commit_named, log_uncommitted, one_at_a_time, workspace


def _name_of_run() -> str:
    options = flow_run.parameters.get("options") or {}
    options = options if isinstance(options, Sweep) else Sweep.model_validate(options)
    return name_of_run(f"sweep {options.method} {' '.join(options.space)}")


def clean_up(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook for a sweep whose process was killed: removes its worktrees and ends its run in MLflow."""
    remove_worktrees(flow, flow_run, state)
    close_sweep(project_root(), str(flow_run.id)[:8])


@flow(
    name="sweep",
    flow_run_name=_name_of_run,
    log_prints=True,
    on_crashed=[clean_up],
    task_runner=ThreadPoolTaskRunner(max_workers=64),
)
@fail_with_message
def sweep(options: Sweep = Sweep()) -> Trial:
    """Searches parameters; returns the best trial and, by choice, builds and promotes it."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    commit = commit_named(home, options.revision)  # of all trials, even if somebody commits meanwhile
    if options.revision == "HEAD":
        log_uncommitted(home, commit, log)
    if options.method == "halving":
        log(options.described(home))
    with one_at_a_time(home, log):
        search = Search(home, options, commit)
        with SweepTracking(home, short_run_id(), options) as search.tracking:
            best = search.run_trials()
        if options.promote:
            recipe = Build(
                **options.model_dump(include=set(Recipe.model_fields) - {"target", "revision", "others"}),
                revision=commit,
                others={**options.others, **best.parameters},
            )
            with workspace(home, short_run_id(), commit, log) as ws:
                ws.set(recipe.values())
                build(ws, recipe)
    return best
