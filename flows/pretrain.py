"""The flow `pretrain`: one Prefect task per DVC stage, taken from dvc.yaml, in a worktree of the run's own.

DVC decides what is built. Prefect adds what DVC does not have: schedules, retries by each stage's `meta.prefect`,
forms, logs and states to look at, a button to cancel. When a run is cancelled, the trainer saves; the next run resumes.

    python -m flows.pretrain [--target STAGE] [--set train.lr=0.002 ...] [--force] [--here]

runs it once, with a Prefect server that lives as long as the run.
"""

import argparse
import os
import signal
import subprocess
import sys
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
from flows.options import ALL, Build
from flows.outcome import RunFailed, fail_with_message
from flows.runner import die_with_parent, end_with_worker
from flows.stages import StageRunner, foundry_command, run_graph
from flows.workspace import KEPT, Workspace, commit_of, one_at_a_time, prune, workspace
from foundry.config import ConfigError, load_params, parse_yaml
from foundry.utils.flow_runs import BuildNote, StageOutcome

OWN_SESSION = "FOUNDRY_OWN_SESSION"


def run_name(options: Build) -> str:
    return " ".join(filter(None, ("pretrain", commit_of(project_root(), options.revision)[:7], options.named())))


def _name_of_run() -> str:
    options = flow_run.parameters.get("options")
    return name_of_run(run_name(options if isinstance(options, Build) else Build.model_validate(options or {})))


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
    nodes = plan(ws.root, options.target)
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
    if "export" in built and load_params(ws.root / "params.yaml").runtime.tracking:
        decision = register(ws.root)
        create_artifact(create_markdown_artifact, "champion", markdown=decision, description="the decision of the gate")
    publish(ws, outcomes, how_to_restore(ws, fresh=not (force or options.values() or ws.lost)))
    if failed:
        raise RunFailed("; ".join(f"{o.stage}: {o.state} {o.message}" for o in failed))
    return outcomes


@task(
    task_run_name="register", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[10, 20, 40]
)
def _register(root: Path) -> str:
    return foundry_command(root, ["register"], get_run_logger().info)[-1]


def register(root: Path) -> str:
    """Registers what was built, in case the export stage did not: DVC restored the stage, or MLflow was away.

    Does not fail the build if the tracker is still away: `foundry sync` registers the model later.
    """
    state = _register(root, return_state=True)
    return state.result() if state.is_completed() else f"not registered yet, `foundry sync` does it: {state.message}"


def how_to_restore(ws: Workspace, fresh: bool) -> str:
    """The command that brings the results into the project's folder.

    Args:
        fresh: whether the run cache has them under the commit's own parameters and data.
    """
    if not ws.isolated:
        return ""
    at = f"To have these results in your folder, at {ws.commit[:9]}:"
    if fresh:
        return f"{at} `dvc repro` restores them without running anything."
    kept = ",".join(n for n in KEPT if (ws.folder / n).exists())
    # Not `dvc checkout`: it does not restore the reports, which are in git and are those of another model.
    return (
        f"{at} `cp .foundry/runs/{ws.folder.name}/{{{kept}}} . && dvc repro` restores files and reports together, "
        "without running anything."
    )


def parse_set(pairs: list[str]) -> dict[str, Any]:
    """Parses `["train.lr=0.002"]` into {key: value}; values are YAML.

    Raises:
        ConfigError: if a pair has no `=`, or its value is not YAML.
    """
    if bad := [p for p in pairs if "=" not in p]:
        raise ConfigError(f"--set {bad[0]}: write KEY=VALUE, such as --set train.lr=0.002")
    return {k.strip(): parse_yaml(v, f"--set {k.strip()}") for k, v in (p.split("=", 1) for p in pairs)}


def in_own_session() -> int:
    """Runs this command again in a session of its own and passes Ctrl-C on to that process; returns its exit code.

    In the terminal's session, Ctrl-C would also end Prefect's temporary server, before the run has reported its state.
    """
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.pretrain", *sys.argv[1:]],
        env={**os.environ, OWN_SESSION: "1"},
        start_new_session=True,
        preexec_fn=die_with_parent,
    )
    signal.signal(signal.SIGTERM, lambda *_: child.terminate())
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the pipeline once as a Prefect flow.")
    parser.add_argument("--target", default=ALL, metavar="STAGE", help="this stage and those it needs (default: all)")
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="other parameters, such as train.lr=0.002"
    )
    parser.add_argument("--revision", default="HEAD", help="commit, branch or tag that is built (default: HEAD)")
    parser.add_argument("--here", action="store_true", help="build in this folder, not in a git worktree")
    parser.add_argument("--force", action="store_true", help="run the stages even if nothing changed")
    args = parser.parse_args()
    if OWN_SESSION not in os.environ:
        sys.exit(in_own_session())
    try:
        options = Build(
            target=args.target,
            others=parse_set(args.set),
            revision=args.revision,
            isolated=not args.here,
            force=args.force,
        )
        options.check(project_root())
        pretrain(options)
    except FoundryError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
