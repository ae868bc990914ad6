"""A copy of the registry in plain files: every registered model with its versions' files, aliases and tags, and the runs behind them.

FOLDER/registry.json            models, versions, aliases, tags; each version's run with parameters and newest metrics
FOLDER/NAME/VERSION/            what the version holds: export/ and its losses by document
FOLDER/mlflow.db                the whole store, where it is SQLite
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import ConfigError, TrackingError
from foundry.tracking.address import sqlite_path
from foundry.tracking.names import CONTENT
from foundry.tracking.registry import fetch, reached
from foundry.tracking.search import every_model, every_version
from foundry.utils.files import atomic_dir, read_json, write_json

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunData
    from mlflow.entities.model_registry import ModelVersion


def backup(uri: str, folder: Path) -> dict[str, int]:
    """Copies what is not there yet, and writes registry.json anew: {models, versions, copied}.

    Raises:
        ConfigError: for a folder that cannot be made.
        TrackingError: if MLflow or its store cannot be reached, or a version's files are gone; what could be copied is.
    """
    folder = folder.absolute()  # SQLite takes a relative name that begins with `file:` for an address
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(
            f"{folder} cannot be the folder of a backup: {e.strerror}; name one that can be made"
        ) from None
    known = _known(folder)
    copied, models, problems = 0, [], []
    with reached(uri, "back up the registry") as client:
        for model in every_model(client):
            rows = []
            for version in every_version(client, model.name):
                row = _version(client, version)
                to = folder / model.name / row["version"]
                if not to.exists() or known.get((model.name, row["version"])) != row["source"]:
                    try:
                        _copy(client, version, uri, to)
                        copied += 1
                    except Exception as e:  # MLflow raises its own and every store's
                        problems.append(
                            f"version {row['version']} of {model.name} has no files any more at {version.source}: {e}"
                        )
                rows.append(row)
            models.append(
                {
                    "name": model.name,
                    "description": model.description,
                    "tags": model.tags,
                    "aliases": model.aliases,
                    "versions": rows,
                }
            )
    if store := sqlite_path(uri):
        _copy_sqlite(store, folder / "mlflow.db")
    write_json(folder / "registry.json", {"uri": uri, "models": models})
    if problems:
        raise TrackingError("not all could be copied:\n  - " + "\n  - ".join(problems))
    return {"models": len(models), "versions": sum(len(m["versions"]) for m in models), "copied": copied}


def _known(folder: Path) -> dict[tuple[str, str], str]:
    """{(model, version): where its files came from} of the backup that is there: a folder may hold one of another registry."""
    path = folder / "registry.json"
    if not path.exists():
        return {}
    models = read_json(path, "a backup of the registry")["models"]
    return {(m["name"], v["version"]): v["source"] for m in models for v in m["versions"]}


def _copy(client: MlflowClient, version: ModelVersion, uri: str, to: Path) -> None:
    """Copies the files of a version; under its name there is always a complete copy, the former one or the new one."""
    with atomic_dir(to) as new:
        found = fetch(client, version, uri, new)
        if found != new:  # MLflow keeps the name that the files have in its store
            for path in list(found.iterdir()):
                os.rename(path, new / path.name)
            found.rmdir()


def _version(client: MlflowClient, version: ModelVersion) -> dict[str, Any]:
    run = _run(client, version.run_id) if version.run_id else None
    return {
        "version": str(version.version), "description": version.description, "tags": version.tags, "run_id": version.run_id,
        "created": version.creation_timestamp, "source": f"{version.source} {version.tags.get(CONTENT, '')}".strip(),
        "run": {"params": run.params, "metrics": run.metrics, "tags": {k: v for k, v in run.tags.items() if k != "mlflow.log-model.history"}} if run else None,
    }  # fmt: skip


def _run(client: MlflowClient, run_id: str) -> RunData | None:
    """What the run behind a version holds; None if somebody removed it from the store."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id).data
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def _copy_sqlite(source: Path, to: Path) -> None:
    """By SQLite's own backup: writers need not stop."""
    part = to.with_name(f".{to.name}.tmp")
    with contextlib.closing(sqlite3.connect(source)) as a, contextlib.closing(sqlite3.connect(part)) as b:
        a.backup(b)
    os.replace(part, to)
