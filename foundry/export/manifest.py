"""The record of an export: `proof.json` contains the hash of every file and of itself, so that a flipped byte is noticed.

What protects the record itself: `dvc.lock` has the hash of the whole folder, and the registry a tag with it.
Imports no torch: checking an export takes as long as reading it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from foundry.config import ExportError
from foundry.utils.files import read_json, sha256_file, sha256_json, write_json

NAME = "proof.json"


class ChangedExportError(ExportError):
    """Files of an export are not what its record says.

    Attributes:
        states: {file: "missing", "changed" or "added"}, in the order of the names.
    """

    def __init__(self, folder: Path, states: dict[str, str]) -> None:
        self.states = states
        lines = "\n  - ".join(f"{name}: {state}" for name, state in states.items())
        super().__init__(
            f"{folder} is not as it was exported:\n  - {lines}\n"
            "`foundry verify --repair` restores it, or `dvc repro export` builds it again"
        )


class _Record(BaseModel):
    """What readers of `proof.json` rely on."""

    model_config = ConfigDict(extra="allow")

    model_name: str
    files: dict[str, str]


def write_record(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """Writes `proof.json` over the files in the folder; returns its content."""
    record = {**facts, "files": _hashes(folder)}
    record["sha256"] = sha256_json(record)
    write_json(folder / NAME, record)
    return record


def read_record(folder: str | Path) -> dict[str, Any]:
    """The content of `proof.json`, whose own hash holds.

    Raises:
        ExportError: if the folder is no export, or the record was changed.
    """
    path = Path(folder) / NAME
    record = read_json(path, "the proof of an export; run `dvc repro export` or `dvc checkout`", ExportError)
    if not isinstance(record, dict) or record.pop("sha256", None) != sha256_json(record):
        raise ExportError(f"{path} was changed after the export: `foundry verify --repair` restores it")
    try:
        _Record.model_validate(record)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(f"{path} is not the proof of an export: {where}: {first['msg']}") from None
    return record


def verify_export(folder: str | Path) -> dict[str, Any]:
    """Checks every file against the hash in `proof.json`; returns its content.

    Raises:
        ChangedExportError: naming every file that is missing, changed or added.
        ExportError: if the record itself is missing or was changed.
    """
    folder = Path(folder)
    record = read_record(folder)
    expected, seen = record["files"], _hashes(folder)
    states = {
        name: "missing" if name not in seen else "added" if name not in expected else "changed"
        for name in sorted({*expected, *seen})
        if seen.get(name) != expected.get(name)
    }
    if states:
        raise ChangedExportError(folder, states)
    return record


def _hashes(folder: Path) -> dict[str, str]:
    files = ((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    return {name: sha256_file(path) for name, path in sorted(files) if name != NAME}
