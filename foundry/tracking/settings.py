"""Where MLflow is, and its environment: no telemetry, quick failures. The only place that decides either.

MLflow keeps absolute addresses of artifacts in its store. `connect` repairs those of a SQLite store that was moved or copied together with its project.
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
from foundry.tracking.description import EXPERIMENT, NOTE
from foundry.utils.files import state_dir
from foundry.utils.locks import exclusive

if TYPE_CHECKING:
    from mlflow import MlflowClient


ARTIFACTS = "mlartifacts"  # folder beside a SQLite store
ADDRESSES = (  # columns of MLflow 3.17 that hold an address of artifacts; a test finds those that are missing here
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
        home: the project, for a process that may stand elsewhere; by default the one that this process belongs to.

    Raises:
        ConfigError: for an address that can never work, with the right form and where the wrong one stands.
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
    """To be called before mlflow is imported. An unreachable server must cost seconds: with MLflow's defaults a call takes 247 s to fail."""
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")


@contextmanager
def serialized(name: str) -> Iterator[None]:
    """One process of this project at a time: creating the SQLite store, registering a version."""
    with exclusive(state_dir() / f"{name}.lock", wait=None):
        yield


def connect(uri: str) -> MlflowClient:
    """A client. A SQLite store is created by one process at a time, as is the repair of one that was moved or copied: what it holds lies beside it.

    Raises:
        ConfigError: for an address that can never work.
        Exception: MLflow's own, SQLAlchemy's and every network error.
    """
    uri = resolve(uri)
    prepare_environment()
    import logging

    from mlflow import MlflowClient

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
    """Makes the store under another name first: a process killed while MLflow makes its tables would leave one that never opens again."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{glob.escape(new.name)}*"):
        left.unlink()
    MlflowClient(sqlite_uri(new)).search_experiments(max_results=1)
    with contextlib.closing(sqlite3.connect(new)) as db, db:
        # MLflow's own experiment would write to `mlruns` in the folder that some process was started in.
        db.execute("UPDATE experiments SET artifact_location = ?", (artifacts_of(path),))
    os.replace(new, path)


def artifacts_of(store: Path) -> str:
    """Where a SQLite store keeps its files: beside it."""
    return store.with_name(ARTIFACTS).as_uri()


def repair_addresses(store: Path) -> int:
    """Points a SQLite store at the files beside it: after `mv` the old addresses lead nowhere, after `cp -r` to the original's files.

    One transaction, so that a kill leaves all old or all new. Addresses that were never beside the store (S3, a server's own scheme) stay.

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
    """One line of an error of MLflow's or of the network; urllib3 puts what matters last."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return (line.partition("(Caused by ")[2].removesuffix(")") or line)[:200]


@contextmanager
def mlflow_at(uri: str) -> Iterator[None]:
    """MLflow's own global address, only inside the block.

    MLflow writes it into MLFLOW_TRACKING_URI: what follows in this process, and its children, would take it for the user's.
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
    """The experiment of that name; made when it is not there, with its artifacts beside a SQLite store."""
    with serialized("experiment"):
        found = client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        store = sqlite_path(resolve(uri))
        where = artifacts_of(store) if store else None
        made = client.create_experiment(name, artifact_location=where)
        # MLflow opens on its GenAI pages otherwise.
        client.set_experiment_tag(made, "mlflow.experimentKind", "custom_model_development")
        client.set_experiment_tag(made, NOTE, EXPERIMENT)
        return made
