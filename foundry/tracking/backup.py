"""A copy of the registry in plain files: every registered model with its versions' files, aliases and tags, and the runs behind them.

FOLDER/registry.json            models, versions, aliases, tags; each version's run with parameters and newest metrics
FOLDER/NAME/VERSION/            what the version holds: export/ and its losses by document
FOLDER/mlflow.db                the whole store, where it is SQLite
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import TrackingError
from foundry.tracking.registry import fetch, reached, versions
from foundry.utils.files import write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


def backup(uri: str, folder: Path) -> dict[str, int]:
    """Copies what is not there yet, and writes registry.json anew: {models, versions, copied}.

    Raises:
        TrackingError: if MLflow or its store cannot be reached, or a version's files are gone.
    """
    folder.mkdir(parents=True, exist_ok=True)
    copied, models = 0, []
    with reached(uri, "back up the registry") as client:
        for model in client.search_registered_models():
            rows = []
            for version in versions(client, model.name):
                copied += _copy(client, version, uri, folder / model.name / str(version.version))
                rows.append(_version(client, version))
            models.append(
                {
                    "name": model.name,
                    "description": model.description,
                    "tags": model.tags,
                    "aliases": model.aliases,
                    "versions": rows,
                }
            )
    if uri.startswith("sqlite:///"):
        _copy_sqlite(Path(uri.removeprefix("sqlite:///")), folder / "mlflow.db")
    write_json(folder / "registry.json", {"uri": uri, "models": models})
    return {"models": len(models), "versions": sum(len(m["versions"]) for m in models), "copied": copied}


def _copy(client: MlflowClient, version: ModelVersion, uri: str, to: Path) -> bool:
    """A version's files never change: what has its final name is whole."""
    if to.exists():
        return False
    part = to.with_name(f".{to.name}.tmp")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        found = fetch(client, version, uri, part)
    except Exception as e:
        raise TrackingError(
            f"version {version.version} of {version.name} has no files any more at {version.source}: {e}"
        ) from e
    os.replace(found, to)
    shutil.rmtree(part, ignore_errors=True)
    return True


def _version(client: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    run = client.get_run(version.run_id).data if version.run_id else None
    return {
        "version": str(version.version), "description": version.description, "tags": version.tags, "run_id": version.run_id,
        "created": version.creation_timestamp,
        "run": {"params": run.params, "metrics": run.metrics, "tags": {k: v for k, v in run.tags.items() if k != "mlflow.log-model.history"}} if run else None,
    }  # fmt: skip


def _copy_sqlite(source: Path, to: Path) -> None:
    """By SQLite's own backup: writers need not stop."""
    part = to.with_name(f".{to.name}.tmp")
    with contextlib.closing(sqlite3.connect(source)) as a, contextlib.closing(sqlite3.connect(part)) as b:
        a.backup(b)
    os.replace(part, to)
