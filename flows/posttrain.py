"""The flow `posttrain`: from the trained model to one that answers, one Prefect task per DVC stage of chat/dvc.yaml.

It is `pretrain` for the other pipelines: what the chat model depends on is built first where something changed.

    python -m flows.posttrain [--target chat|align|STAGE] [--set sft.steps=200 ...] [--force] [--here]

runs it once, with a Prefect server that lives as long as the run.
"""

import os
import sys

from flows.settings import environment, project_root
from foundry.config import FoundryError

try:
    os.environ.update(environment(project_root()))  # before prefect is imported, which then reads its settings
except FoundryError as e:
    sys.exit(f"error: {e}")

from prefect import flow, get_run_logger
from prefect.runtime import flow_run

from flows.names import name_of_run, short_run_id
from flows.once import once
from flows.options import PostBuild
from flows.outcome import fail_with_message
from flows.pretrain import build, remove_worktrees, run_name
from flows.runner import end_with_worker
from flows.workspace import one_at_a_time, workspace


def _name_of_run() -> str:
    options = flow_run.parameters.get("options")
    options = options if isinstance(options, PostBuild) else PostBuild.model_validate(options or {})
    return name_of_run(run_name("posttrain", options))


@flow(name="posttrain", flow_run_name=_name_of_run, log_prints=True, on_crashed=[remove_worktrees])
@fail_with_message
def posttrain(options: PostBuild = PostBuild()) -> dict[str, str]:
    """From the trained model to a registered chat model: every stage that changed; {stage: state}."""
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


def main() -> None:
    once(posttrain, PostBuild, "flows.posttrain", "Build the chat model once as a Prefect flow.")


if __name__ == "__main__":
    main()
