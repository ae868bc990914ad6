"""The flow `promote`: asks the gate whether a registered version becomes champion, or promotes it with a reason."""

import os

from flows.settings import environment, project_root

os.environ.update(environment(project_root()))

from prefect import flow, get_run_logger
from prefect.artifacts import create_markdown_artifact
from prefect.runtime import flow_run
from pydantic import Field, model_validator

from flows.artifacts import create_artifact
from flows.names import name_of_run
from flows.options import Form
from flows.outcome import fail_with_message
from flows.stages import foundry_command


class Promote(Form):
    """Which version, and why."""

    which: str = Field("challenger", pattern=r"^[\w.][\w.-]*$", description="a version number or an alias")
    model: str = Field(
        "",
        pattern=r"^([\w.][\w.-]*)?$",
        description="name of the registered model, such as foundry-chat; empty: the base one",
    )
    force: bool = Field(False, description="against the gate; who and why are recorded")
    why: str = Field("", description="the reason, with force")

    @model_validator(mode="after")
    def _reason(self) -> "Promote":
        if self.force != bool(self.why.strip()):
            raise ValueError("force needs a reason in `why`, and a reason is only for force")
        return self


def _name_of_run() -> str:
    options = flow_run.parameters.get("options") or {}
    which = options.which if isinstance(options, Promote) else options.get("which", "challenger")
    return name_of_run(f"promote {which}")


@flow(name="promote", flow_run_name=_name_of_run, log_prints=True)
@fail_with_message
def promote(options: Promote = Promote()) -> str:
    """Lets the gate decide about a version, or overrides it with a reason; returns the decision."""
    model = ["--model", options.model] if options.model else []
    command = ["promote", options.which, *model, *(["--force", "--why", options.why] if options.force else [])]
    decision = foundry_command(project_root(), command, get_run_logger().info)[-1]
    create_artifact(create_markdown_artifact, "champion", markdown=decision, description="the decision of the gate")
    return decision
