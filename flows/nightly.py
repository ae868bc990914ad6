"""The flow `nightly`: the publishers' data of today, a model of it, and the decision of the promotion gate.

Files without a sha256 in params.yaml are removed from the run's data.lock.json and downloaded again; if nothing is
newer, DVC builds nothing. The export stage registers the model and asks the gate: a champion that was tested on other
text is scored again on the new test text first.
"""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.names import name_of_run, short_run_id
from flows.options import CHAT, Build
from flows.outcome import fail_with_message
from flows.pretrain import build, remove_worktrees
from flows.runner import end_with_worker
from flows.stages import foundry_command
from flows.workspace import one_at_a_time, workspace
from foundry.config import ConfigError, read_yaml


class Nightly(Build):
    """What the refresh builds."""

    refresh: bool = Field(True, description="download newer data; off: build what params.yaml and data.lock.json name")
    chat: bool = Field(
        False, description="build the chat model of it, too, which has its own registered model and gate"
    )

    def targets(self) -> list[str]:
        return [*super().targets(), *([CHAT] if self.chat else [])]

    def check(self, root: Path) -> None:
        if self.refresh and not self.isolated:
            raise ConfigError("a refresh removes recorded hashes, and needs its own worktree: leave `isolated` on")
        super().check(root)


def _name_of_run() -> str:
    when = flow_run.scheduled_start_time
    return name_of_run(f"nightly {when:%Y-%m-%d}" if when else "nightly")


@flow(name="nightly", flow_run_name=_name_of_run, log_prints=True, on_crashed=[remove_worktrees])
@fail_with_message
def nightly(options: Nightly = Nightly()) -> dict[str, str]:
    """Downloads newer data, rebuilds, compares with the champion, and promotes by the gate; {stage: state}."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    with (
        one_at_a_time(home, log),
        workspace(home, short_run_id(), options.revision, log, isolated=options.isolated) as ws,
    ):
        ws.set(options.values())
        force: frozenset[str] = frozenset()
        if options.refresh:
            sources = [s["name"] for s in read_yaml(ws.root / "params.yaml")["download"]["sources"]]
            foundry_command(ws.root, ["relock", *sources], log)
            force = frozenset({"download"})
        outcomes = build(ws, options, force)
    return {o.stage: o.state for o in outcomes}
