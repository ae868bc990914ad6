"""The flow `pretrain`: one Prefect task per DVC stage, taken from dvc.yaml, in a worktree of the run's own.

DVC decides what is built. Prefect adds what DVC does not have: schedules, retries by each stage's `meta.prefect`,
forms, logs and states to look at, a button to cancel. When a run is cancelled, the trainer saves; the next run resumes.

    python -m flows.pretrain [--target STAGE] [--set train.lr=0.002 ...] [--force] [--here]

runs it once, with a Prefect server that lives as long as the run.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.settings import environment, project_root
from foundry.config import FoundryError

try:
    os.environ.update(environment(project_root()))  # before prefect is imported, which then reads its settings
except FoundryError as e:
    sys.exit(f"error: {e}")

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.artifacts import create_artifact, publish
from flows.graph import plan
from flows.names import name_of_run, short_run_id
from flows.once import once
from flows.options import Build
from flows.outcome import RunFailed, fail_with_message
from flows.runner import end_with_worker
from flows.stages import StageRunner, foundry_command, run_graph
from flows.workspace import KEPT, Workspace, commit_of, one_at_a_time, prune, workspace
from foundry.config import load_params
from foundry.config.pipelines import EXPORTS, PIPELINES, read_stages
from foundry.utils.flow_runs import BuildNote, StageOutcome


def run_name(flow: str, options: Build) -> str:
    return " ".join(filter(None, (flow, commit_of(project_root(), options.revision)[:7], options.named())))


def _name_of_run() -> str:
    options = flow_run.parameters.get("options")
    return name_of_run(
        run_name("pretrain", options if isinstance(options, Build) else Build.model_validate(options or {}))
    )


def remove_worktrees(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook for a run whose process was killed: removes its worktree now, not when the next run starts."""
    prune(project_root())


@flow(name="pretrain", flow_run_name=_name_of_run, log_prints=True, on_crashed=[remove_worktrees])
@fail_with_message
def pretrain(options: Build = Build()) -> dict[str, str]:
    """From raw text to a registered model: every stage that changed, in the order of the graph; {stage: state}."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    with (
        one_at_a_time(home, log),
        workspace(home, short_run_id(), options.revision, log, isolated=options.isolated) as ws,
    ):
        ws.set(options.values())
        outcomes = build(ws, options)
    return {o.stage: o.state for o in outcomes}


def build(ws: Workspace, options: Build, force: frozenset[str] = frozenset()) -> list[StageOutcome]:
    """Runs the graph in a workspace, keeps what it built and publishes it.

    Raises:
        RunFailed: if stages failed; the message names each of them.
    """
    nodes = plan(ws.root, *options.targets())
    force |= frozenset(n.name for n in nodes) if options.force else frozenset()
    note = BuildNote(
        commit=ws.commit,
        isolated=ws.isolated,
        flow_run=str(flow_run.id),
        name=flow_run.name,
        options=options.model_dump(mode="json", exclude_defaults=True),
        stages=[],
    )
    runner = StageRunner(ws, {"FOUNDRY_FLOW_RUN_ID": note.flow_run})
    try:
        outcomes = run_graph(runner, nodes, force=force, limits=options.time_limits_s)
    except BaseException:
        ws.keep(note, built=[])
        raise
    failed = [o for o in outcomes if not o.completed]
    built = [o.stage for o in outcomes if o.completed]
    ws.keep(note.model_copy(update={"stages": outcomes}), built)
    known = read_stages(ws.root)
    exports = [(known[n].pipeline, out) for n in built for out in known[n].outs if out in EXPORTS]
    for pipeline, export in exports if load_params(ws.root / "params.yaml").runtime.tracking else ():
        decision, key = register(ws.root, export), "champion" if pipeline == "all" else f"champion-{pipeline}"
        create_artifact(create_markdown_artifact, key, markdown=decision, description="the decision of the gate")
    pipelines = dict.fromkeys(known[n.name].pipeline for n in nodes)
    publish(ws, outcomes, how_to_restore(ws, not (force or options.values() or ws.lost), pipelines))
    if failed:
        raise RunFailed("; ".join(f"{o.stage}: {o.state} {o.message}" for o in failed))
    return outcomes


@task(
    task_run_name="register", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[10, 20, 40]
)
def _register(root: Path, export: str) -> str:
    return foundry_command(root, ["register", export], get_run_logger().info)[-1]


def register(root: Path, export: str) -> str:
    """Registers what was built, in case the export stage did not: DVC restored the stage, or MLflow was away.

    Does not fail the build if the tracker is still away: `foundry sync` registers the model later.
    """
    state = _register(root, export, return_state=True)
    return state.result() if state.is_completed() else f"not registered yet, `foundry sync` does it: {state.message}"


def how_to_restore(ws: Workspace, fresh: bool, pipelines: Iterable[str]) -> str:
    """The command that brings the results into the project's folder.

    Args:
        fresh: whether the run cache has them under the commit's own parameters and data.
        pipelines: of the stages that were built.
    """
    if not ws.isolated:
        return ""
    at = f"To have these results in your folder, at {ws.commit[:9]}:"
    files = " ".join(PIPELINES[p] for p in pipelines if p != "all")
    repro = f"dvc repro {files}".rstrip()
    if fresh:
        return f"{at} `{repro}` restores them without running anything."
    kept = ",".join(dict.fromkeys(Path(n).parts[0] for n in KEPT if (ws.folder / n).exists()))
    # Not `dvc checkout`: it does not restore the reports, which are in git and are those of another model.
    return (
        f"{at} `cp -r .foundry/runs/{ws.folder.name}/{{{kept}}} . && {repro}` restores files and reports together, "
        "without running anything."
    )


def main() -> None:
    once(pretrain, Build, "flows.pretrain", "Run the pipeline once as a Prefect flow.")


if __name__ == "__main__":
    main()
