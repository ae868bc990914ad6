"""The note that a run of a flow leaves: `.foundry/runs/NAME/run.json`.

The flows write it; they, `foundry trace` and `foundry gc` read it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from foundry.config import DataError
from foundry.utils.files import read_json, write_json
from foundry.utils.records import Record

FILE = "run.json"


class StageOutcome(Record):
    """What became of one stage in a build.

    Attributes:
        stage: its name in dvc.yaml.
        state: the name of its task's state in Prefect.
        seconds: how long it took; empty if it did not complete.
        why: what had changed, so that it ran.
        message: why it did not complete; empty if it did.
    """

    stage: str
    state: str
    seconds: float | Literal[""]
    why: str
    message: str

    @property
    def completed(self) -> bool:
        return self.state in ("Completed", "Restored", "UpToDate")


class _RunNote(Record):
    """What every run notes.

    Attributes:
        commit: the commit that was built.
        isolated: whether it was built in a git worktree of its own.
        flow_run: the id of the flow run in Prefect.
    """

    commit: str
    isolated: bool
    flow_run: str


class BuildNote(_RunNote):
    """A build: its name in Prefect, the options that are not defaults, and its stages (none if it was interrupted)."""

    name: str
    options: dict[str, Any]
    stages: list[StageOutcome]


class TrialNote(_RunNote):
    """One trial of a sweep: its name, the parameters that the sweep set, by dotted key, and the metric."""

    trial: str
    parameters: dict[str, Any]
    metric: float


def write_note(folder: Path, note: BuildNote | TrialNote) -> None:
    write_json(folder / FILE, note.model_dump())


def read_note(folder: Path) -> BuildNote | TrialNote | None:
    """The note in a run's folder; None if there is none.

    Raises:
        DataError: if the file is damaged.
    """
    path, what = folder / FILE, "what a run of a flow was"
    if not path.exists():
        return None
    value = read_json(path, what, DataError)
    kind = TrialNote if isinstance(value, dict) and "trial" in value else BuildNote
    return kind.read(path, what, DataError)
