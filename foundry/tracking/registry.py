"""The registry: one version per content, `challenger` for the newest, `champion` for the one that the gate or a person
chose.

Every step can be repeated: the version is found by the hash of its files, the run by its fingerprint, aliases are set
again. So it does not matter where an earlier call died, how often DVC restores the export, or whether two processes
register at once.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
import urllib.parse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import ConfigError, FoundryError, TrackingError
from foundry.config.prediction import PREDICTION
from foundry.tracking.address import sqlite_path
from foundry.tracking.datasets import DatasetRef, dataset_inputs
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.names import CONTENT, FINGERPRINT, RESTORED
from foundry.tracking.promotion import Decide, registered_model, settle
from foundry.tracking.search import every_logged_model, every_version, first_run
from foundry.tracking.settings import connect, experiment_id, mlflow_at, serialized
from foundry.tracking.source import source_tags
from foundry.utils.files import sha256_tree

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

REQUIREMENTS = ("torch", "sentencepiece", "safetensors", "numpy", "pydantic", "pyyaml", "gguf")
SCORES = "documents.parquet"
DESCRIPTION = (
    "A language model trained by Foundry. `champion` is the best by paired comparison on the test text, `challenger` "
    "the newest."
)
ODD = re.compile(r"[?%#]")  # characters of a local path that MLflow 3.17 reads as parts of an address
ALIASES = {  # how to get back an alias that was removed
    "challenger": "`foundry register` sets it to the newest version again",
    "champion": "`foundry promote` asks the gate for one, `foundry rollback` takes the one before",
}


@dataclass(frozen=True)
class Registration:
    """A registered export.

    Attributes:
        created: whether the version is new; False if the same content was registered before.
        champion: whether it is the champion now.
        reason: why it is or is not the champion.
    """

    name: str
    version: str
    created: bool
    champion: bool
    reason: str


@dataclass(frozen=True)
class Candidate:
    """An export that is to be registered.

    Attributes:
        export_dir: the proved export.
        scores: its losses by document (`documents.parquet`) or its answers by prompt (`answers.parquet`), kept with the
            version so that later versions are compared with it.
        model_code: file that calls `mlflow.models.set_model`; stored, not pickled.
        code_paths: packages that `model_code` imports, stored beside it.
        tags: tags of the version.
        metrics: are logged to the run of the training.
        artifacts: files that are added to the run of the training.
        datasets: are added to the run of the training.
        about: description of the registered model, if this version is its first.
    """

    name: str
    fingerprint: str
    export_dir: Path
    scores: Path
    model_code: Path
    code_paths: list[Path]
    description: str = ""
    tags: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    artifacts: list[Path] = field(default_factory=list)
    datasets: list[DatasetRef] = field(default_factory=list)
    about: str = DESCRIPTION


def register(candidate: Candidate, *, uri: str, experiment: str, decide: Decide) -> Registration:
    """Registers an export as a pyfunc model from code, and lets `decide` say whether it becomes champion.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses; only the registration is affected.
    """
    with reached(uri, "register", "The export is complete; run `foundry register` when MLflow is back") as client:
        content = sha256_tree(candidate.export_dir)
        name = candidate.name
        found = next((v for v in every_version(client, name) if v.tags.get(CONTENT) == content), None)
        version = found or _log(client, candidate, uri, experiment, content)
        done = settle(client, name, version, decide)
    return Registration(name, str(version.version), found is None, done.champion, done.reason)


@contextmanager
def reached(uri: str, what: str, then: str = "", *, alone: bool = True) -> Iterator[MlflowClient]:
    """Yields a client of the registry to one process at a time.

    Args:
        what: names the work in the error message.
        then: what to do about the error.
        alone: False for work that only reads and need not wait for a registration.

    Raises:
        TrackingError: for every error of MLflow or the network inside the block; a `FoundryError` passes unchanged.
    """
    try:
        with serialized("register") if alone else nullcontext():
            client = connect(uri)
            with mlflow_at(uri):
                yield client
    except FoundryError:
        raise
    except Exception as e:  # MLflow raises its own errors, SQLAlchemy's and those of the network
        line = (str(e).splitlines() or [type(e).__name__])[0][:300]
        raise TrackingError(f"could not {what} in MLflow at {uri}: {line}. {then}".strip()) from e


def load_registered(name: str, which: str, uri: str) -> Any:
    """Loads the pyfunc model of a version (`3`) or an alias (`champion`).

    MLflow 3.17 reads the path of a local model as an address, so that it does not find a model in a folder with a `?`
    or a `%20` in its name. From such a store the model is loaded from a copy, which is kept until the process ends,
    because its code is imported from there.
    """
    address = model_address(name, which)
    connect(uri)
    store = sqlite_path(uri)
    import mlflow

    with mlflow_at(uri):
        if store and ODD.search(str(store)):
            folder = tempfile.mkdtemp(prefix="foundry-model-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            address = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=uri)
        return mlflow.pyfunc.load_model(address)


def model_address(name: str, which: str) -> str:
    """MLflow's address of a version (`3`) or an alias (`champion`) of a model."""
    return f"models:/{name}/{which}" if which.isdigit() else f"models:/{name}@{which}"


def find(client: MlflowClient, address: str) -> ModelVersion:
    """The version that `models:/NAME@ALIAS` or `models:/NAME/VERSION` names.

    Raises:
        ConfigError: if it is not such an address, or there is no such model, version or alias.
    """
    from mlflow.exceptions import MlflowException

    name, at, which = address.removeprefix("models:/").partition("@")
    if not at:
        name, _, which = name.partition("/")
    if not (name and which) or not address.startswith("models:/") or not (at or which.isdigit()):
        raise ConfigError(f"{address!r} is not models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        return client.get_model_version_by_alias(name, which) if at else client.get_model_version(name, which)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the store is away
    model = registered_model(client, name)
    if not at:
        raise ConfigError(f"{address}: the model {name} has no version {which}")
    aliases = ", ".join(sorted(model.aliases)) or "none"
    then = f"; {ALIASES[which]}" if which in ALIASES else ""
    raise ConfigError(f"{address}: no version of {name} has the alias {which} (its aliases: {aliases}){then}")


def download(address: str, uri: str, into: Path) -> Path:
    """Copies the files of a version (`export/` and its losses by document) into a folder; returns the folder.

    Raises:
        ConfigError: if there is no such version.
        TrackingError: if MLflow or its store cannot be reached.
    """
    with reached(uri, f"fetch {address}") as client:
        return fetch(client, find(client, address), uri, into)


def fetch(client: MlflowClient, version: ModelVersion, uri: str, into: Path, part: str = "") -> Path:
    """Copies the artifacts of a version, or one part of them (`documents.parquet`), into a folder; call it inside
    `reached`.

    Returns:
        The path of the copy.
    """
    import mlflow

    where = f"models:/{version.name}/{version.version}/artifacts" + (f"/{part}" if part else "")
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=str(into), tracking_uri=uri))


@dataclass(frozen=True)
class Stored:
    """The artifacts of a version in the store.

    Attributes:
        parts: their names, such as `documents.parquet` and `export`; empty if somebody deleted the files.
        where: their address.
    """

    parts: list[str]
    where: str


def stored(client: MlflowClient, version: ModelVersion, uri: str) -> Stored:
    """Asks the store for the artifacts of a version.

    Raises:
        TrackingError: if the store's own folder is missing, as on a disk that is not mounted.
        Exception: MLflow's own errors and those of the network, if the store does not answer.
    """
    import mlflow

    where = str(version.source)
    if where.startswith("models:/m-"):
        where = client.get_logged_model(where.removeprefix("models:/")).artifact_location
    found = mlflow.artifacts.list_artifacts(
        artifact_uri=f"models:/{version.name}/{version.version}/artifacts", tracking_uri=uri
    )
    if not found and where.startswith("file:"):
        folder = Path(urllib.parse.unquote(urllib.parse.urlsplit(where).path))  # ROOT/models/m-ID/artifacts
        if not folder.exists() and not folder.parents[2].exists():
            raise TrackingError(f"{folder.parents[2]} is not there")
    return Stored(sorted(Path(f.path).name for f in found), where)


def _log(client: MlflowClient, c: Candidate, uri: str, experiment: str, content: str) -> ModelVersion:
    import mlflow
    from mlflow.entities import LoggedModelStatus
    from mlflow.exceptions import MlflowException

    run = _run_of(client, uri, experiment, c.fingerprint)
    run_id = run.info.run_id
    for key, value in c.metrics.items():
        if run.data.metrics.get(key) != value:  # a repeated call adds no second point
            client.log_metric(run_id, key, value)
    for path in c.artifacts:
        client.log_artifact(run_id, str(path))
    known = {(d.dataset.name, d.dataset.digest) for d in client.get_run(run_id).inputs.dataset_inputs}
    if new := [d for d in c.datasets if (d.name, d.digest) not in known]:
        client.log_inputs(run_id, datasets=dataset_inputs(new))
    if RESTORED in run.data.tags:  # no training ends it
        client.set_terminated(run_id, "FINISHED")
    model = _logged_model(client, run, c.name, content)
    if model.status != LoggedModelStatus.READY or not mlflow.artifacts.list_artifacts(artifact_uri=model.model_uri):
        _log_files(client, c, model, run_id)
    try:
        client.create_registered_model(c.name, description=c.about)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**c.tags, CONTENT: content, FINGERPRINT: c.fingerprint}
    return client.create_model_version(
        c.name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id, description=c.description
    )


def _log_files(client: MlflowClient, c: Candidate, model: LoggedModel, run_id: str) -> None:
    """Adds its files, its link to the run and its metrics to a logged model.

    Each step can be repeated, even after READY, if somebody deleted the files. MLflow's own `Model.log` cannot be
    repeated: it links first, and a store refuses the same link a second time, so that a call that was killed or failed
    after it could never be completed. `mlflow.pyfunc.log_model` would also set an ended run to RUNNING, and a kill
    would leave it so.
    """
    import mlflow
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema([ParamSpec(name, DataType[kind], default) for name, (kind, default) in PREDICTION.items()]),
    )
    where = model.artifact_location
    with tempfile.TemporaryDirectory(prefix="foundry-model-") as folder:
        path = Path(folder, "model")
        with warnings.catch_warnings():
            # MLflow asks for type hints, which would drop the parameters from the signature, behind a filter of its
            # own.
            warnings.showwarning = lambda *_, **__: None
            mlflow.pyfunc.save_model(
                str(path),
                mlflow_model=Model(where, run_id, model_uuid=model.model_id, model_id=model.model_id),
                python_model=str(c.model_code),
                code_paths=[str(p) for p in c.code_paths],
                signature=signature,
                input_example=["The "],
                model_config={"device": "auto"},
                artifacts={"export": _readable(c.export_dir), "scores": _readable(c.scores)},
                pip_requirements=[
                    *(f"{p}=={installed(p).split('+')[0]}" for p in REQUIREMENTS),
                    f"mlflow=={installed('mlflow-skinny')}",  # a part of mlflow, of the same version
                ],
            )
        client.log_model_artifacts(model.model_id, str(path))
    linked = client.get_run(run_id).outputs
    if model.model_id not in {m.model_id for m in (linked.model_outputs if linked else ())}:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    points = (m for key in c.metrics for m in client.get_metric_history(run_id, key))
    mine = [
        Metric(m.key, m.value, m.timestamp, m.step, model_id=model.model_id, run_id=run_id)
        for m in points
        if m.model_id is None
    ]
    client.log_batch(run_id, metrics=mine)  # the store keeps equal points only once
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _logged_model(client: MlflowClient, run: Run, name: str, content: str) -> LoggedModel:
    """MLflow's entry for the files of this content: the one that an earlier call created, complete or not, or a new
    one.
    """
    where = run.info.experiment_id
    found = every_logged_model(client, where, CONTENT, content)
    mine = next((m for m in found if m.source_run_id == run.info.run_id and m.name == name), None)
    if mine:
        return mine
    return client.create_logged_model(where, name, run.info.run_id, {CONTENT: content}, dict(run.data.params))


def _readable(path: Path) -> str:
    """A local path in the form that MLflow reads.

    An ordinary path stays one, because MLflow does not decode the last part of a URI.
    """
    path = path.resolve()
    return path.as_uri() if ODD.search(str(path)) else str(path)


def _run_of(client: MlflowClient, uri: str, experiment: str, fingerprint: str) -> Run:
    """The run of the training, by its fingerprint.

    It is created if the model was trained elsewhere and restored here.
    """
    where = experiment_id(client, uri, experiment)
    with serialized("run"):  # a delivery takes the same lock: one of them creates the run, the other one finds it
        if found := first_run(client, where, FINGERPRINT, fingerprint):
            return found
        tags = {**lineage_tags(), **source_tags(), FINGERPRINT: fingerprint, RESTORED: "true"}
        return client.create_run(where, run_name=f"restored-{fingerprint[:8]}", tags=tags)
