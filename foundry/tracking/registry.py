"""The registry: one version for one content, `challenger` for the newest, `champion` for the one that the gate or a person chose.

Every step can be repeated: the version is found by the hash of its files, the run by its fingerprint, aliases are set again. So it does not matter
where an earlier call died, how often DVC restores the export, or whether two processes register at once.
"""

from __future__ import annotations

import atexit
import re
import shutil
import tempfile
import urllib.parse
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import ConfigError, FoundryError, TrackingError
from foundry.config.prediction import PREDICTION
from foundry.tracking.address import sqlite_path
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.names import CONTENT, FINGERPRINT, RESTORED
from foundry.tracking.promotion import Decide, settle
from foundry.tracking.run import DatasetRef
from foundry.tracking.search import every_version
from foundry.tracking.settings import connect, experiment_id, mlflow_at, serialized
from foundry.tracking.source import source_tags
from foundry.utils.files import sha256_tree

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

REQUIREMENTS = ("torch", "sentencepiece", "safetensors", "numpy", "pydantic", "pyyaml", "gguf")
SCORES = "documents.parquet"
DESCRIPTION = "A language model trained by Foundry. `champion` is the best by paired comparison on the test text, `challenger` the newest."


ODD = re.compile(r"[?%#]")  # what MLflow 3.17 takes for parts of an address when it is given a local path
ALIASES = {  # what brings an alias back that somebody removed
    "challenger": "`foundry register` sets it to the newest version again",
    "champion": "`foundry promote` asks the gate for one, `foundry rollback` takes the one before",
}


@dataclass(frozen=True)
class Registration:
    name: str
    version: str
    created: bool
    champion: bool
    reason: str


@dataclass(frozen=True)
class Candidate:
    """What is to be registered.

    Args:
        export_dir: the proved export.
        scores: its losses by document (`documents.parquet`), kept with the version so that later ones are compared with it.
        model_code: file that calls `mlflow.models.set_model`; stored, not pickled. `code_paths`: packages that it imports, stored beside it.
        tags: of the version. `metrics`, `artifacts`, `datasets`: put on the training's run.
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


def register(candidate: Candidate, *, uri: str, experiment: str, decide: Decide) -> Registration:
    """Registers an export as a pyfunc model from code, and lets `decide` say whether it becomes champion.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses; nothing but the registration is affected.
    """
    with reached(uri, "register", "The export is whole; run `foundry register` when MLflow is back") as client:
        content = sha256_tree(candidate.export_dir)
        name = candidate.name
        found = next((v for v in every_version(client, name) if v.tags.get(CONTENT) == content), None)
        version = found or _log(client, candidate, uri, experiment, content)
        champion, reason = settle(client, name, version, decide)
    return Registration(name, str(version.version), found is None, champion, reason)


@contextmanager
def reached(uri: str, what: str, then: str = "") -> Iterator[MlflowClient]:
    """A client of the registry, held by one process at a time.

    Raises:
        TrackingError: for whatever MLflow or the network raises inside; `FoundryError`s pass.
    """
    try:
        with serialized("register"):
            client = connect(uri)
            with mlflow_at(uri):
                yield client
    except FoundryError:
        raise
    except Exception as e:  # MLflow raises its own, SQLAlchemy's and every network error
        line = (str(e).splitlines() or [type(e).__name__])[0][:300]
        raise TrackingError(f"could not {what} in MLflow at {uri}: {line}. {then}".strip()) from e


def load_registered(name: str, which: str, uri: str) -> Any:
    """The pyfunc model of a version (`3`) or an alias (`champion`).

    MLflow 3.17 takes the path of a local model for an address when it reads it, so that a `?` or a `%20` in a folder's name hides the model: from such
    a store it is loaded from a copy, which is kept until the process ends, because the model's code is imported from there.
    """
    address = f"models:/{name}/{which}" if which.isdigit() else f"models:/{name}@{which}"
    connect(uri)
    store = sqlite_path(uri)
    import mlflow

    with mlflow_at(uri):
        if store and ODD.search(str(store)):
            folder = tempfile.mkdtemp(prefix="foundry-model-")
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            address = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=folder, tracking_uri=uri)
        return mlflow.pyfunc.load_model(address)


def find(client: MlflowClient, address: str) -> ModelVersion:
    """The version of `models:/NAME@ALIAS` or `models:/NAME/VERSION`.

    Raises:
        ConfigError: if it is not such an address, or there is no such version or alias.
    """
    from mlflow.exceptions import MlflowException

    name, at, alias = address.removeprefix("models:/").partition("@")
    if not at:
        name, _, alias = name.partition("/")
    if not (name and alias) or not address.startswith("models:/") or not (at or alias.isdigit()):
        raise ConfigError(f"{address!r} is not models:/NAME@ALIAS or models:/NAME/VERSION")
    try:
        return client.get_model_version_by_alias(name, alias) if at else client.get_model_version(name, alias)
    except MlflowException as e:
        if e.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the store is away
        lost = at and alias in ALIASES and "Registered Model with name" not in str(e)  # the alias, not the whole model
        then = f"; {ALIASES[alias]}" if lost else ""
        raise ConfigError(f"{address}: {str(e).splitlines()[0][:200]}{then}") from None


def download(address: str, uri: str, into: Path) -> Path:
    """Copies what a version holds (`export/` and its losses by document) into a folder; returns it.

    Raises:
        ConfigError: if there is no such version.
        TrackingError: if MLflow or its store cannot be reached.
    """
    with reached(uri, f"fetch {address}") as client:
        return fetch(client, find(client, address), uri, into)


def fetch(client: MlflowClient, version: ModelVersion, uri: str, into: Path, part: str = "") -> Path:
    """The artifacts of a version, or one part of them (`documents.parquet`), inside `reached`: where they are now."""
    import mlflow

    where = f"models:/{version.name}/{version.version}/artifacts" + (f"/{part}" if part else "")
    return Path(mlflow.artifacts.download_artifacts(artifact_uri=where, dst_path=str(into), tracking_uri=uri))


def stored(client: MlflowClient, version: ModelVersion, uri: str) -> tuple[list[str], str]:
    """What the store holds of a version (`documents.parquet`, `export`) and where; nothing if somebody deleted its files.

    Raises:
        TrackingError: if the store's own folder is not there, as on a disk that is not mounted.
        Exception: MLflow's own and every network error, if the store does not answer.
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
    return sorted(Path(f.path).name for f in found), where


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
    _log_datasets(client, run_id, c.datasets)
    if RESTORED in run.data.tags:  # nobody else ends it
        client.set_terminated(run_id, "FINISHED")
    model = _logged_model(client, run, c.name, content)
    if model.status != LoggedModelStatus.READY or not mlflow.artifacts.list_artifacts(artifact_uri=model.model_uri):
        _log_files(client, c, model, run_id)
    try:
        client.create_registered_model(c.name, description=DESCRIPTION)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {**c.tags, CONTENT: content, FINGERPRINT: c.fingerprint}
    return client.create_model_version(
        c.name, model.model_uri, run_id=run_id, tags=tags, model_id=model.model_id, description=c.description
    )


def _log_files(client: MlflowClient, c: Candidate, model: LoggedModel, run_id: str) -> None:
    """Gives an entry its files, its link to the run and its metrics. Each step can be repeated, also after READY, if somebody deleted the files.

    MLflow's own `Model.log` cannot: it links first, and a store refuses the same link a second time, so that a call that was killed or failed after
    it could never be completed. `mlflow.pyfunc.log_model` would besides set an ended run to RUNNING: a kill would leave it so.
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
            # It asks for type hints, which would drop the parameters from the signature, behind a filter of its own.
            warnings.showwarning = lambda *_, **__: None
            mlflow.pyfunc.save_model(
                str(path), mlflow_model=Model(where, run_id, model_uuid=model.model_id, model_id=model.model_id),
                python_model=str(c.model_code), code_paths=[str(p) for p in c.code_paths], signature=signature,
                input_example=["The "], model_config={"device": "auto"},
                artifacts={"export": _readable(c.export_dir), "scores": _readable(c.scores)},
                pip_requirements=[f"{p}=={installed(p).split('+')[0]}" for p in (*REQUIREMENTS, "mlflow")],
            )  # fmt: skip
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
    client.log_batch(run_id, metrics=mine)  # the store keeps equal points once
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)


def _logged_model(client: MlflowClient, run: Run, name: str, content: str) -> LoggedModel:
    """MLflow's entry for the files of this content: the one that an earlier call made, whole or not, or a new one."""
    where = run.info.experiment_id
    found = client.search_logged_models([where], f"tags.`{CONTENT}` = '{content}'", max_results=100)
    mine = next((m for m in found if m.source_run_id == run.info.run_id and m.name == name), None)
    if mine:
        return mine
    return client.create_logged_model(where, name, run.info.run_id, {CONTENT: content}, dict(run.data.params))


def _readable(path: Path) -> str:
    """A local path as MLflow reads it. It would keep the last part of a URI encoded, so an ordinary path stays one."""
    path = path.resolve()
    return path.as_uri() if ODD.search(str(path)) else str(path)


def _run_of(client: MlflowClient, uri: str, experiment: str, fingerprint: str) -> Run:
    """The training's run, by its fingerprint; one is made when the model was trained elsewhere and restored here."""
    where = experiment_id(client, uri, experiment)
    with serialized(
        "run"
    ):  # as a training does that is being delivered: one of them makes the run, the other one finds it
        runs = client.search_runs([where], f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1)
        if runs:
            return runs[0]
        tags = {**lineage_tags(), **source_tags(), FINGERPRINT: fingerprint, RESTORED: "true"}
        return client.create_run(where, run_name=f"restored-{fingerprint[:8]}", tags=tags)


def _log_datasets(client: MlflowClient, run_id: str, datasets: list[DatasetRef]) -> None:
    """Those that the run does not have yet."""
    import json

    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = {(d.dataset.name, d.dataset.digest) for d in client.get_run(run_id).inputs.dataset_inputs}
    new = [
        DatasetInput(
            Dataset(
                name=d.name, digest=d.digest, source_type="dvc", source=json.dumps({"path": d.path, "digest": d.digest})
            ),
            [InputTag("mlflow.data.context", d.context)],
        )
        for d in datasets
        if (d.name, d.digest) not in known
    ]
    if new:
        client.log_inputs(run_id, datasets=new)
