"""The flow `pretrain`: one Prefect task a DVC stage, taken from dvc.yaml, in a worktree of the run's own.

DVC decides what is built. Prefect adds what DVC has not: schedules, retries by each stage's `meta.prefect`, forms, logs and states to look at, a button to
cancel. Cancelling lets the trainer save; the next run resumes.

    python -m flows.pretrain [--target STAGE] [--set train.lr=0.002 ...] [--force] [--here]      once, with a server that lives as long
"""

import argparse
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))  # before prefect is imported: it reads its settings then

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.graph import plan
from flows.names import name_of_run
from flows.options import ALL, Build
from flows.outcome import RunFailed, reported
from flows.pages import publish, show
from flows.runner import die_with_parent, end_with_worker
from flows.stages import Crew, foundry_command, run_graph
from flows.workspace import KEPT, Workspace, commit_of, one_at_a_time, prune, workspace
from foundry.config import ConfigError, FoundryError, load_params, parse_yaml

OWN = "FOUNDRY_OWN_SESSION"


def run_name(options: Build) -> str:
    return " ".join(filter(None, ("pretrain", commit_of(project_root(), options.revision)[:7], options.named())))


def _name_of_run() -> str:
    options = flow_run.parameters.get("options")
    return name_of_run(run_name(options if isinstance(options, Build) else Build.model_validate(options or {})))


def clear_up(flow: Any, flow_run: Any, state: Any) -> None:
    """Hook of a run whose process was killed: its worktree goes, now and not with the next run."""
    prune(project_root())


@flow(name="pretrain", flow_run_name=_name_of_run, log_prints=True, on_crashed=[clear_up])
@reported
def pretrain(options: Build = Build()) -> dict[str, str]:
    """From raw text to a registered model: every stage that changed, in the order of the graph."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    with (
        one_at_a_time(home, log),
        workspace(home, run_id(), options.revision, log, isolated=options.isolated) as ws,
    ):
        ws.set(options.values())
        rows = build(ws, options)
    return {r["stage"]: r["state"] for r in rows}


def run_id() -> str:
    return str(flow_run.id)[:8]


def build(ws: Workspace, options: Build, force: frozenset[str] = frozenset()) -> list[dict[str, Any]]:
    """Runs the graph in a workspace, keeps and publishes what came of it.

    Raises:
        RunFailed: naming each stage that did not end well.
    """
    nodes = plan(ws.root, options.target)
    force |= frozenset(n.name for n in nodes) if options.force else frozenset()
    facts = {
        "flow_run": str(flow_run.id),
        "name": flow_run.name,
        "options": options.model_dump(mode="json", exclude_defaults=True),
    }
    crew = Crew(ws, {"FOUNDRY_FLOW_RUN_ID": str(flow_run.id)})
    try:
        rows = run_graph(crew, nodes, force=force, limits=options.time_limits_s)
    except BaseException:
        ws.keep({**facts, "stages": []}, built=[])
        raise
    bad = [r for r in rows if r["state"] not in ("Completed", "Restored", "UpToDate")]
    built = [r["stage"] for r in rows if r not in bad]
    ws.keep({**facts, "stages": rows}, built)
    if "export" in built and load_params(ws.root / "params.yaml").runtime.tracking:
        show(create_markdown_artifact, "champion", markdown=register(ws.root), description="what the gate said")
    publish(ws, rows, how_to_get(ws, fresh=not (force or options.values() or ws.lost)))
    if bad:
        raise RunFailed("; ".join(f"{r['stage']}: {r['state']} {r['message']}" for r in bad))
    return rows


@task(
    task_run_name="register", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[10, 20, 40]
)
def _register(root: Path) -> str:
    return foundry_command(root, ["register"], get_run_logger().info)[-1]


def register(root: Path) -> str:
    """Registers what was built, unless the export stage has done it: DVC may have restored the stage, or MLflow was away then.

    That the tracker is away still does not fail what was built: `foundry sync` registers it.
    """
    state = _register(root, return_state=True)
    return state.result() if state.is_completed() else f"not registered yet, `foundry sync` does it: {state.message}"


def how_to_get(ws: Workspace, fresh: bool) -> str:
    """How the results come into the project's folder.

    Args:
        fresh: whether the run cache has them under the commit's own parameters and data, and no others.
    """
    if not ws.isolated:
        return ""
    at = f"To have these results in your folder, at {ws.commit[:9]}:"
    if fresh:
        return f"{at} `dvc repro` restores them without running anything."
    kept = ",".join(n for n in KEPT if (ws.folder / n).exists())
    # Not `dvc checkout`: it leaves the reports, which git keeps, as those of another model.
    return (
        f"{at} `cp .foundry/runs/{ws.folder.name}/{{{kept}}} . && dvc repro` restores files and reports together, without "
        "running anything."
    )


def parse_set(pairs: list[str]) -> dict[str, Any]:
    """`["train.lr=0.002"]` as {key: value}; values are YAML.

    Raises:
        ConfigError: for a pair without `=`, and for a value that is not YAML.
    """
    if bad := [p for p in pairs if "=" not in p]:
        raise ConfigError(f"--set {bad[0]}: write KEY=VALUE, such as --set train.lr=0.002")
    return {k.strip(): parse_yaml(v, f"--set {k.strip()}") for k, v in (p.split("=", 1) for p in pairs)}


def in_own_session() -> int:
    """Runs this command again in a session of its own and hands Ctrl-C on to it alone: Prefect's temporary server, its child, would
    end of a terminal's Ctrl-C before the run has told it how it ended."""
    child = subprocess.Popen(
        [sys.executable, "-m", "flows.pretrain", *sys.argv[1:]],
        env={**os.environ, OWN: "1"},
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
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="other parameters, as train.lr=0.002")
    parser.add_argument("--revision", default="HEAD", help="commit, branch or tag that is built (default: HEAD)")
    parser.add_argument("--here", action="store_true", help="in this folder, not in a worktree of the run's own")
    parser.add_argument("--force", action="store_true", help="run the stages even if nothing changed")
    args = parser.parse_args()
    if OWN not in os.environ:
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
