"""The flow `backup`: everything that was built to DVC's remote, and the registry with its models to a folder."""

import os
import sys
from pathlib import Path

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from pydantic import Field

from flows.options import Form
from flows.outcome import RunFailed, reported
from flows.pages import show
from flows.stages import command, foundry_command
from flows.workspace import dvc
from foundry.config import ConfigError


class Backup(Form):
    """What is saved, and where."""

    push: bool = Field(True, description="send what was built, and DVC's run cache, to the default remote")
    registry: bool = Field(True, description="copy registered models, aliases, tags and runs to a folder")
    folder: str = Field(
        ".foundry/backup", min_length=1, max_length=200, description="of the registry's copy; inside the project"
    )


@task(
    task_run_name="dvc push", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[30, 60, 120]
)
def push() -> str:
    """`make push`; a store that does not answer is tried again."""
    return command(project_root(), [sys.executable, "-m", "scripts.push"], get_run_logger().info)[-1]


@task(task_run_name="registry", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=[30, 60])
def export_registry(folder: str) -> str:
    """`foundry backup`; a tracker that does not answer is tried again."""
    return foundry_command(project_root(), ["backup", folder], get_run_logger().info)[-1]


def inside(home: Path, folder: str) -> Path:
    """The folder, below the project's: whoever reaches the form may not write anywhere else.

    Raises:
        ConfigError: if it is elsewhere, also through a link, or is the project itself.
    """
    path = (home / folder).resolve()
    if home not in path.parents:
        raise ConfigError(
            f"folder: {folder!r} is {path}, which is not inside the project: name a folder relative to it, such as .foundry/backup; "
            "`foundry backup FOLDER` in a terminal writes anywhere"
        )
    return path


@flow(name="backup", log_prints=True)
@reported
def backup(options: Backup = Backup()) -> dict[str, str]:
    """Sends results to DVC's remote and the registry to a folder; one that fails does not keep the other from being done."""
    home = project_root()
    folder = inside(home, options.folder)
    if options.push and not dvc(home, "remote", "default", may_fail=True):
        raise ConfigError("there is no default remote to push to: `make remote url=…` names one, or switch `push` off")
    states = {}
    if options.push:
        states["dvc push"] = push(return_state=True)
    if options.registry:
        states["registry"] = export_registry(str(folder), return_state=True)
    rows = [
        {"what": name, "state": s.name, "told": s.result() if s.is_completed() else (s.message or "")[-600:]}
        for name, s in states.items()
    ]
    show(create_table_artifact, "backup", table=rows, description="what was saved")
    if bad := [r for r in rows if r["state"] != "Completed"]:
        raise RunFailed("; ".join(f"{r['what']}: {r['told']}" for r in bad))
    return {r["what"]: r["told"] for r in rows}
