"""Where MLflow is, and its environment: no telemetry, quick failures. The only place that decides either."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.config import Runtime
from foundry.tracking.description import EXPERIMENT, NOTE
from foundry.utils.files import state_dir

if TYPE_CHECKING:
    from mlflow import MlflowClient


def tracking_uri(runtime: Runtime) -> str:
    """`runtime.tracking_uri`, else MLFLOW_TRACKING_URI, else SQLite under `.foundry/` by its absolute path."""
    return runtime.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{state_dir() / 'mlflow.db'}"


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
    path = state_dir() / f"{name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield


def connect(uri: str) -> MlflowClient:
    """A client. The SQLite store is created by one process at a time; its migrations do not stand two at once."""
    prepare_environment()
    import logging

    from mlflow import MlflowClient

    for name in ("alembic", "mlflow.store.db.utils", "mlflow.pyfunc"):
        logging.getLogger(name).setLevel(logging.WARNING)
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    with serialized("mlflow"):
        path = Path(uri.removeprefix("sqlite:///"))
        if not path.exists():
            _create(path)
        client = MlflowClient(uri)
        client.search_experiments(max_results=1)
    return client


def _create(path: Path) -> None:
    """Makes the store under another name first: a process killed while MLflow makes its tables would leave one that never opens again."""
    from mlflow import MlflowClient

    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    for left in path.parent.glob(f"{new.name}*"):
        left.unlink()
    MlflowClient(f"sqlite:///{new}").search_experiments(max_results=1)
    os.replace(new, path)


def reason(error: Exception) -> str:
    """One line of an error of MLflow's or of the network; urllib3 puts what matters last."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return (line.partition("(Caused by ")[2].removesuffix(")") or line)[:200]


def experiment_id(client: MlflowClient, uri: str, name: str) -> str:
    """The experiment of that name; made when it is not there, with its artifacts beside a SQLite store."""
    with serialized("experiment"):
        found = client.get_experiment_by_name(name)
        if found:
            return found.experiment_id
        where = None
        if uri.startswith("sqlite:///"):
            where = Path(uri.removeprefix("sqlite:///")).with_name("mlartifacts").as_uri()
        made = client.create_experiment(name, artifact_location=where)
        # MLflow opens on its GenAI pages otherwise.
        client.set_experiment_tag(made, "mlflow.experimentKind", "custom_model_development")
        client.set_experiment_tag(made, NOTE, EXPERIMENT)
        return made
