"""The address of MLflow and its environment: no telemetry, quick failures. No other module decides either.

MLflow keeps absolute addresses of artifacts in its store. `connect` repairs those of a SQLite store that was moved or
copied together with its project.
"""

from __future__ import annotations

import contextlib
import glob
import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import ConfigError, Runtime
from foundry.tracking.address import own_store, resolve, sqlite_path, sqlite_uri
from foundry.tracking.description import EXPERIMENT_NOTE
from foundry.tracking.names import NOTE
from foundry.utils.extras import missing_package
from foundry.utils.files import state_dir
from foundry.utils.locks import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient


ARTIFACTS = "mlartifacts"  # name of the folder beside a SQLite store
ADDRESSES = (  # columns of MLflow 3.17 with an address of artifacts; a test finds columns that are missing here
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
    ("trace_tags", "value"),
)


def tracking_uri(runtime: Runtime, home: Path | None = None) -> str:
    """`runtime.tracking_uri`, else MLFLOW_TRACKING_URI, else SQLite under `.foundry/`; always absolute.

    Args:
        home: the project's folder, for a process whose current folder is another one; by default the project of this
            process.

    Raises:
        ConfigError: for an address that can never work; the message has the right form and says where the wrong one was
            set.
    """
    for where, uri in (
        ("runtime.tracking_uri", runtime.tracking_uri),
        ("MLFLOW_TRACKING_URI", os.environ.get("MLFLOW_TRACKING_URI")),
    ):
        if uri:
            try:
                return resolve(uri, home)
            except ConfigError as e:
                raise ConfigError(f"{where}: {e}") from None
    return sqlite_uri(own_store(home))


def prepare_environment() -> None:
    """Sets MLflow's environment variables; must be called before mlflow is imported.

    An unreachable server must cost seconds: with MLflow's defaults a call takes 247 s to fail.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


@contextmanager
def serialized(name: str) -> Iterator[None]:
    """Lets one process of this project at a time run the block, such as the creation of the SQLite store or a
    registration.
    """
    with exclusive(state_dir() / f"{name}.lock", wait=None):
        yield


def connect(uri: str) -> MlflowClient:
    """Returns a client of MLflow.

    A SQLite store is created where it is missing, and repaired if it was moved or copied; only one process does either
    at a time.

    Raises:
        ConfigError: for an address that can never work.
        MissingPackageError: if MLflow is not installed.
        Exception: MLflow's own errors, SQLAlchemy's and those of the network.
    """
    uri = resolve(uri)
    prepare_environment()
    import logging

    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as e:
        raise (missing_package(e) or e) from None

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    path = sqlite_path(uri)
    if path is None:
        return MlflowClient(uri)
    with serialized("mlflow"):
        if not path.exists():
            _create(path)
        repair_addresses(path)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _create(path: Path) -> None:
    """Creates a SQLite store under a temporary name and renames it.

    A process that is killed while MLflow creates its tables would otherwise leave a store that cannot be opened again.
    """
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{glob.escape(new.name)}*"):
        left.unlink()
    MlflowClient(sqlite_uri(new)).search_experiments(max_results=1)
    with contextlib.closing(sqlite3.connect(new)) as db, db:
        # MLflow's own experiment would write to `mlruns` in the current folder of some process.
        db.execute("UPDATE experiments SET artifact_location = ?", (artifacts_of(path),))
    os.replace(new, path)


def artifacts_of(store: Path) -> str:
    """The address of the files of a SQLite store: a folder beside it."""
    return store.with_name(ARTIFACTS).as_uri()


def repair_addresses(store: Path) -> int:
    """Makes the addresses in a SQLite store point to the files beside it.

    After `mv` the old addresses point nowhere, after `cp -r` to the files of the original. One transaction changes all
    of them, so that a kill leaves all old or all new addresses. Addresses that were never beside the store (S3, a
    server's own scheme) are not changed.

    Returns:
        The number of addresses that were changed.
    """
    here, changed = artifacts_of(store), 0
    with contextlib.closing(sqlite3.connect(store, timeout=20)) as db, db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if "experiments" not in tables:
            return 0
        found = {at for (at,) in db.execute("SELECT DISTINCT artifact_location FROM experiments")}
        for old in sorted(at for at in found if at and at != here and _was_beside(at)):
            for table, column in ADDRESSES:
                if table in tables:
                    changed += db.execute(
                        f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                        f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                        (here, len(old) + 1, old, len(old) + 1, f"{old}/"),
                    ).rowcount
    return changed


def _was_beside(location: str) -> bool:
    return location.startswith("file:///") and location.endswith(f"/{ARTIFACTS}")


def reason(error: Exception) -> str:
    """An error of MLflow or of the network in one line; urllib3 puts the cause last."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return (line.partition("(Caused by ")[2].removesuffix(")") or line)[:200]


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """Sets MLflow's own global address inside the block only.

    MLflow writes it into MLFLOW_TRACKING_URI as well: later code of this process, and its children, would take it for
    the user's setting.
    """
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The id of the experiment of that name; it is created where it is missing, with its artifacts beside a SQLite
    store.
    """
    with serialized("experiment"):
        found = client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        store = sqlite_path(resolve(uri))
        where = artifacts_of(store) if store else None
        made = client.create_experiment(name, artifact_location=where)
        # MLflow opens on its GenAI pages otherwise.
        client.set_experiment_tag(made, "mlflow.experimentKind", "custom_model_development")
        client.set_experiment_tag(made, NOTE, EXPERIMENT_NOTE)
        return made
