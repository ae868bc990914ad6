"""Writing and checking `proof.json`, which has the hash of every file and of itself: a flipped byte is noticed.

What protects the record itself: `dvc.lock` has the hash of the whole folder, and the registry a tag with it.
Imports no torch: checking an export takes as long as reading it.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from foundry.config import ExportError
from foundry.export.proof import ExportRecord
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


def write_record(folder: Path, record: ExportRecord) -> None:
    """Writes `proof.json` into the folder: the record, and its own hash as the last key."""
    content = record.model_dump(exclude_none=True)
    write_json(folder / NAME, {**content, "sha256": sha256_json(content)})


def read_record(folder: str | Path) -> ExportRecord:
    """The record in `proof.json`, after its own hash was checked.

    Raises:
        ExportError: if the folder is not an export, the record was changed, or another version of Foundry wrote it.
    """
    path = Path(folder) / NAME
    content = read_json(path, "the proof of an export; run `dvc repro export` or `dvc checkout`", ExportError)
    if not isinstance(content, dict) or content.pop("sha256", None) != sha256_json(content):
        raise ExportError(f"{path} was changed after the export: `foundry verify --repair` restores it")
    try:
        return ExportRecord.model_validate(content)
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExportError(
            f"{path} is not the proof of an export of this version of Foundry: {where}: {first['msg']}. "
            "`dvc repro export` writes it again"
        ) from None


def verify_export(folder: str | Path) -> ExportRecord:
    """Compares every file with its hash in `proof.json`; returns the record.

    Raises:
        ChangedExportError: naming every file that is missing, changed or added.
        ExportError: if the record itself is missing or was changed.
    """
    folder = Path(folder)
    record = read_record(folder)
    expected, seen = record.files, hash_files(folder)
    states = {
        name: "missing" if name not in seen else "added" if name not in expected else "changed"
        for name in sorted({*expected, *seen})
        if seen.get(name) != expected.get(name)
    }
    if states:
        raise ChangedExportError(folder, states)
    return record


def hash_files(folder: Path) -> dict[str, str]:
    """{path in the folder: sha256} of every file but `proof.json`, in the order of the paths."""
    files = ((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())
    return {name: sha256_file(path) for name, path in sorted(files) if name != NAME}
