"""The pipelines: files of stages for DVC, each built by a target of the Makefile, and each with a lock beside it.

They are one graph: stages of a later file depend on outs of an earlier one, and `dvc repro FILE` builds those first.
Names of stages are unique among them. All paths are relative to the project's folder (`wdir` of a stage says so).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config.errors import ConfigError
from foundry.config.load import read_yaml

PIPELINES = {"all": "dvc.yaml", "chat": "chat/dvc.yaml", "align": "chat/align/dvc.yaml"}
EXPORTS = ("artifacts/export", "artifacts/chat/export", "artifacts/chat/aligned")  # of each pipeline
LOCKS = tuple(str(Path(file).with_name("dvc.lock")) for file in PIPELINES.values())


@dataclass(frozen=True)
class Stage:
    """A stage as its file describes it.

    Attributes:
        pipeline: key of `PIPELINES`.
        entry: its content in the file.
    """

    name: str
    pipeline: str
    entry: Mapping[str, Any]

    @property
    def address(self) -> str:
        """What DVC's command line and `dvc status` call it."""
        return self.name if self.pipeline == "all" else f"{PIPELINES[self.pipeline]}:{self.name}"

    @property
    def outs(self) -> list[str]:
        """The paths of its outs, metrics and plots."""
        return [path_of(o) for kind in ("outs", "metrics", "plots") for o in self.entry.get(kind, [])]


def path_of(out: str | Mapping[str, Any]) -> str:
    """The path of an out, which may have settings."""
    return out if isinstance(out, str) else next(iter(out))


def read_stages(root: str | Path) -> dict[str, Stage]:
    """All stages by name, in the order of the files; a project may lack the later files.

    Raises:
        ConfigError: if two stages have one name, or a file cannot be read.
    """
    stages: dict[str, Stage] = {}
    for pipeline, file in PIPELINES.items():
        if pipeline != "all" and not (Path(root) / file).exists():
            continue
        for name, entry in read_yaml(Path(root) / file)["stages"].items():
            if name in stages:
                raise ConfigError(f"{file} and {PIPELINES[stages[name].pipeline]} both have a stage {name}")
            stages[name] = Stage(name, pipeline, entry)
    return stages
