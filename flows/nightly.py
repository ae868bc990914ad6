"""The flow `nightly`: what the publishers have today, a model of it, and the gate's word about it.

Files without a sha256 of their own in params.yaml are forgotten in the run's data.lock.json and fetched again; where nothing is newer DVC builds nothing. The
export stage registers the model and asks the gate: a champion that was tested on other text is scored anew on the new test text first.
"""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from pathlib import Path

from prefect import flow, get_run_logger
from prefect.runtime import flow_run
from pydantic import Field

from flows.names import name_of_run
from flows.options import Build
from flows.outcome import reported
from flows.pretrain import build, clear_up, run_id
from flows.runner import end_with_worker
from flows.stages import foundry_command
from flows.workspace import one_at_a_time, workspace
from foundry.config import ConfigError, read_yaml


class Nightly(Build):
    """What the refresh builds."""

    refresh: bool = Field(True, description="fetch newer data; off: build what params.yaml and data.lock.json name")

    def check(self, root: Path) -> None:
        if self.refresh and not self.isolated:
            raise ConfigError("a refresh forgets recorded hashes, and needs a run of its own: leave `isolated` on")
        super().check(root)


def _name_of_run() -> str:
    when = flow_run.scheduled_start_time
    return name_of_run(f"nightly {when:%Y-%m-%d}" if when else "nightly")


@flow(name="nightly", flow_run_name=_name_of_run, log_prints=True, on_crashed=[clear_up])
@reported
def nightly(options: Nightly = Nightly()) -> dict[str, str]:
    """Downloads newer data, rebuilds, compares with the champion, and promotes by the gate."""
    end_with_worker()
    log = get_run_logger().info
    home = project_root()
    options.check(home)
    with (
        one_at_a_time(home, log),
        workspace(home, run_id(), options.revision, log, isolated=options.isolated) as ws,
    ):
        ws.set(options.values())
        force: frozenset[str] = frozenset()
        if options.refresh:
            sources = [s["name"] for s in read_yaml(ws.root / "params.yaml")["download"]["sources"]]
            foundry_command(ws.root, ["relock", *sources], log)
            force = frozenset({"download"})
        rows = build(ws, options, force)
    return {r["stage"]: r["state"] for r in rows}
