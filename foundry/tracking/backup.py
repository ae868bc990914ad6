"""A copy of the registry in plain files: registered models with the files of their versions, and the runs behind them.

FOLDER/registry.json            models, versions, aliases, tags; each version's run with parameters and newest metrics
FOLDER/NAME/VERSION/            the files of the version: export/ and its losses by document
FOLDER/mlflow.db                the whole store, if it is SQLite
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import ConfigError, TrackingError
from foundry.tracking.address import sqlite_path
from foundry.tracking.names import CONTENT
from foundry.tracking.registry import fetch, reached
from foundry.tracking.search import every_model, every_version
from foundry.utils.files import atomic_dir, write_json
from foundry.utils.records import Record

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_HISTORY = "mlflow.log-model.history"  # a tag of MLflow's own, which repeats what the version has


class BackedUpRun(Record):
    """The run behind a version; `metrics` are the newest values."""

    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]


class BackedUpVersion(Record):
    """A version of a registered model.

    Attributes:
        created: ms since the epoch.
        source: where its files came from, and the hash of their content.
        run: None if somebody removed the run from the store.
    """

    version: str
    description: str | None
    tags: dict[str, str]
    run_id: str | None
    created: int
    source: str
    run: BackedUpRun | None


class BackedUpModel(Record):
    """A registered model; `aliases` are its versions by alias."""

    name: str
    description: str | None
    tags: dict[str, str]
    aliases: dict[str, str | int]
    versions: list[BackedUpVersion]


class Registry(Record):
    """The content of `registry.json`."""

    uri: str
    models: list[BackedUpModel]


@dataclass(frozen=True)
class BackedUp:
    """What a backup contains: numbers of models and versions, and of the versions whose files were copied this time."""

    models: int
    versions: int
    copied: int


def backup(uri: str, folder: Path) -> BackedUp:
    """Copies the files that the folder does not have yet, and writes registry.json again.

    Raises:
        ConfigError: if the folder cannot be created.
        TrackingError: if MLflow or its store cannot be reached, or the files of a version are gone; all others are
            copied.
    """
    folder = folder.absolute()  # SQLite reads a relative name that begins with `file:` as an address
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"{folder} cannot be the folder of a backup ({e.strerror}): name another folder") from None
    known = _known(folder)
    copied, models, problems = 0, [], []
    with reached(uri, "back up the registry") as client:
        for model in every_model(client):
            versions = []
            for version in every_version(client, model.name):
                row = _version(client, version)
                to = folder / model.name / row.version
                if not to.exists() or known.get((model.name, row.version)) != row.source:
                    try:
                        _copy(client, version, uri, to)
                        copied += 1
                    except Exception as e:  # MLflow raises its own errors and those of every store
                        problems.append(
                            f"version {row.version} of {model.name} has no files any more at {version.source}: {e}"
                        )
                versions.append(row)
            models.append(
                BackedUpModel(
                    name=model.name,
                    description=model.description,
                    tags=model.tags,
                    aliases=model.aliases,
                    versions=versions,
                )
            )
    if store := sqlite_path(uri):
        _copy_sqlite(store, folder / "mlflow.db")
    write_json(folder / "registry.json", Registry(uri=uri, models=models).model_dump())
    if problems:
        raise TrackingError("not everything could be copied:\n  - " + "\n  - ".join(problems))
    return BackedUp(len(models), sum(len(m.versions) for m in models), copied)


def _known(folder: Path) -> dict[tuple[str, str], str]:
    """{(model, version): source of its files} of the backup in the folder, which may be that of another registry."""
    path = folder / "registry.json"
    if not path.exists():
        return {}
    models = Registry.read(path, "a backup of the registry; remove a damaged one to back up everything again").models
    return {(m.name, v.version): v.source for m in models for v in m.versions}


def _copy(client: MlflowClient, version: ModelVersion, uri: str, to: Path) -> None:
    """Copies the files of a version.

    Under its name there is a complete copy at any time: the former one or the new one.
    """
    with atomic_dir(to) as new:
        found = fetch(client, version, uri, new)
        if found != new:  # MLflow keeps the name that the files have in its store
            for path in list(found.iterdir()):
                os.rename(path, new / path.name)
            found.rmdir()


def _version(client: MlflowClient, version: ModelVersion) -> BackedUpVersion:
    return BackedUpVersion(
        version=str(version.version),
        description=version.description,
        tags=version.tags,
        run_id=version.run_id,
        created=version.creation_timestamp,
        source=f"{version.source} {version.tags.get(CONTENT, '')}".strip(),
        run=_run(client, version.run_id) if version.run_id else None,
    )


def _run(client: MlflowClient, run_id: str) -> BackedUpRun | None:
    from mlflow.exceptions import MlflowException

    try:
        data = client.get_run(run_id).data
    except MlflowException as e:
        if e.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    tags = {k: v for k, v in data.tags.items() if k != MODEL_HISTORY}
    metrics = {k: v for k, v in data.metrics.items() if math.isfinite(v)}  # JSON has no other numbers
    return BackedUpRun(params=data.params, metrics=metrics, tags=tags)


def _copy_sqlite(source: Path, to: Path) -> None:
    """Copies a SQLite store by SQLite's own backup: writers need not stop."""
    part = to.with_name(f".{to.name}.tmp")
    with contextlib.closing(sqlite3.connect(source)) as a, contextlib.closing(sqlite3.connect(part)) as b:
        a.backup(b)
    os.replace(part, to)
