"""The addresses of `make ui`: `.foundry/ui/addresses.json`, written by flows/ui.py and read by the commands.

    {"prefect": "http://127.0.0.1:4200", "mlflow": "http://127.0.0.1:5000"}

They are without a path; Prefect's API is at `/api` below its address. A living `make ui` holds the lock
`.foundry/ui/lock`. If nobody holds it, a killed one left the file, and other programs may use its ports.
"""

from __future__ import annotations

from pathlib import Path

from foundry.utils.files import write_json
from foundry.utils.locks import locked_if_free
from foundry.utils.records import Record


class Addresses(Record):
    """The addresses of the UIs of Prefect and MLflow, without a path."""

    prefect: str
    mlflow: str


def lock_path(root: Path) -> Path:
    return root / ".foundry" / "ui" / "lock"


def addresses(root: Path) -> Addresses | None:
    """The addresses of the `make ui` that runs in this project; None if none runs, or its servers are starting."""
    path = _path(root)
    if not path.exists():
        return None
    with locked_if_free(lock_path(root), note=None) as free:
        if free:
            return None
    return Addresses.read(path, "the addresses of `make ui`")


def write_addresses(root: Path, here: Addresses) -> None:
    write_json(_path(root), here.model_dump())


def remove_addresses(root: Path) -> None:
    _path(root).unlink(missing_ok=True)


def _path(root: Path) -> Path:
    return root / ".foundry" / "ui" / "addresses.json"
