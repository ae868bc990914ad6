"""The flow `backup`: sends what was built to DVC's remote, and copies the registry with its models to a folder."""

import os
import sys
from pathlib import Path

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.states import State
from pydantic import Field

from flows.artifacts import create_artifact
from flows.options import Form
from flows.outcome import RunFailed, fail_with_message
from flows.stages import command, foundry_command
from flows.workspace import dvc
from foundry.config import ConfigError


class Backup(Form):
    """What is backed up, and where."""

    push: bool = Field(True, description="send what was built, and DVC's run cache, to the default remote")
    registry: bool = Field(True, description="copy registered models, aliases, tags and runs to a folder")
    folder: str = Field(
        ".foundry/backup",
        min_length=1,
        max_length=200,
        description="where the registry's copy goes; inside the project",
    )


@task(
    task_run_name="dvc push", cache_policy=NO_CACHE, persist_result=False, retries=3, retry_delay_seconds=[30, 60, 120]
)
def push() -> str:
    """`make push`; retried, because the remote may be away for a moment. Returns its last line."""
    return command(project_root(), [sys.executable, "-m", "scripts.push"], get_run_logger().info)[-1]


@task(task_run_name="registry", cache_policy=NO_CACHE, persist_result=False, retries=2, retry_delay_seconds=[30, 60])
def export_registry(folder: str) -> str:
    """`foundry backup`; retried, because the tracker may be away for a moment. Returns its last line."""
    return foundry_command(project_root(), ["backup", folder], get_run_logger().info)[-1]


def inside(home: Path, folder: str) -> Path:
    """The absolute path of a folder below the project: a user of the form must not be able to write elsewhere.

    Raises:
        ConfigError: if the folder is elsewhere, also through a link, or is the project itself.
    """
    path = (home / folder).resolve()
    if home not in path.parents:
        raise ConfigError(
            f"folder: {folder!r} is {path}, which is not inside the project: name a folder relative to it, such as "
            ".foundry/backup; `foundry backup FOLDER` in a terminal writes anywhere"
        )
    return path


@flow(name="backup", log_prints=True)
@fail_with_message
def backup(options: Backup = Backup()) -> dict[str, str]:
    """Sends results to DVC's remote and copies the registry; if one of the two fails, the other is done all the same.

    Returns:
        {what was backed up: the last line of its command}.
    """
    home = project_root()
    folder = inside(home, options.folder)
    if options.push and not dvc(home, "remote", "default", may_fail=True):
        raise ConfigError(
            "there is no default remote to push to: name one by `make remote url=…`, or switch `push` off"
        )
    states: dict[str, State] = {}
    if options.push:
        states["dvc push"] = push(return_state=True)
    if options.registry:
        states["registry"] = export_registry(str(folder), return_state=True)
    messages = {what: s.result() if s.is_completed() else (s.message or "")[-600:] for what, s in states.items()}
    table = [{"what": what, "state": s.name, "message": messages[what]} for what, s in states.items()]
    create_artifact(create_table_artifact, "backup", table=table, description="what was backed up")
    if failed := [what for what, s in states.items() if not s.is_completed()]:
        raise RunFailed("; ".join(f"{what}: {messages[what]}" for what in failed))
    return messages
