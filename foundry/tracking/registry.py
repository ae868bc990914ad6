"""The registry: one version for one content, `challenger` for the newest, `champion` for the best on the same test text.

Every step can be repeated: the version is found by the hash of its files, the run by its fingerprint, aliases are set again. So it does not matter
where an earlier call died, how often DVC restores the export, or whether two processes register at once.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.config import TrackingError
from foundry.tracking.lineage import lineage_tags
from foundry.tracking.settings import connect, experiment_id, serialized
from foundry.utils.files import sha256_tree

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CONTENT, TEST, SCORE, PRINT = (
    "foundry.content_sha256",
    "foundry.test_sha256",
    "foundry.test_bits_per_byte",
    "foundry.fingerprint",
)
REQUIREMENTS = ("torch", "sentencepiece", "safetensors", "numpy", "pydantic", "pyyaml", "gguf")


@dataclass(frozen=True)
class Registration:
    name: str
    version: str
    created: bool
    champion: bool
    reason: str


def register(
    export_dir: Path, *, uri: str, experiment: str, name: str, fingerprint: str, bits_per_byte: float, test_sha256: str, model_code: Path,
    code_paths: list[Path], metrics: dict[str, float], artifacts: list[Path],
) -> Registration:  # fmt: skip
    """Registers an export as a pyfunc model from code.

    Args:
        bits_per_byte: on the test text whose hash is `test_sha256`; the lower is the better.
        model_code: file that calls `mlflow.models.set_model`; stored, not pickled.
        code_paths: packages that it imports, stored beside it.
        metrics, artifacts: put on the training's run.

    Raises:
        TrackingError: if MLflow cannot be reached or refuses; nothing but the registration is affected.
    """
    try:
        with serialized("register"):
            client = connect(uri)
            content = sha256_tree(export_dir)
            found = _version_of(client, name, content)
            version = found or _log(
                client,
                export_dir,
                uri,
                experiment,
                name,
                fingerprint,
                content,
                model_code,
                code_paths,
                metrics,
                artifacts,
                bits_per_byte,
                test_sha256,
            )
            champion, reason = _aliases(client, name, version, bits_per_byte, test_sha256)
    except Exception as e:  # MLflow raises its own, SQLAlchemy's and every network error
        line = (str(e).splitlines() or [type(e).__name__])[0][:300]
        raise TrackingError(
            f"could not register in MLflow at {uri}: {line}. The export is whole; run `foundry register` when MLflow is back"
        ) from e
    return Registration(name, str(version.version), found is None, champion, reason)


def load_registered(name: str, which: str, uri: str) -> Any:
    """The pyfunc model of a version (`3`) or an alias (`champion`)."""
    connect(uri)
    import mlflow

    mlflow.set_tracking_uri(uri)
    return mlflow.pyfunc.load_model(f"models:/{name}/{which}" if which.isdigit() else f"models:/{name}@{which}")


def _versions(client: MlflowClient, name: str) -> list[ModelVersion]:
    return list(client.search_model_versions(f"name='{name}'"))


def _version_of(client: MlflowClient, name: str, content: str) -> ModelVersion | None:
    return next((v for v in _versions(client, name) if v.tags.get(CONTENT) == content), None)


def _log(
    client: MlflowClient, export_dir: Path, uri: str, experiment: str, name: str, fingerprint: str, content: str, model_code: Path,
    code_paths: list[Path], metrics: dict[str, float], artifacts: list[Path], bits_per_byte: float, test_sha256: str,
) -> ModelVersion:  # fmt: skip
    import mlflow
    from mlflow.exceptions import MlflowException
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema

    mlflow.set_tracking_uri(uri)
    run_id = _run_of(client, uri, experiment, fingerprint)
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)
    for path in artifacts:
        client.log_artifact(run_id, str(path))
    status = client.get_run(run_id).info.status
    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.string)]),
        outputs=Schema([ColSpec(DataType.string)]),
        params=ParamSchema(
            [
                ParamSpec("max_tokens", DataType.long, 64), ParamSpec("temperature", DataType.double, 0.8), ParamSpec("top_k", DataType.long, 0),
                ParamSpec("top_p", DataType.double, 0.95), ParamSpec("seed", DataType.long, 0),
            ]
        ),
    )  # fmt: skip
    with mlflow.start_run(run_id=run_id), warnings.catch_warnings():
        # It asks for type hints, which would drop the parameters from the signature, and for an example, which it would run.
        warnings.simplefilter("ignore", UserWarning)
        info = mlflow.pyfunc.log_model(
            name=name, python_model=str(model_code), code_paths=[str(p) for p in code_paths], artifacts={"export": str(export_dir)}, signature=signature,
            pip_requirements=[f"{p}=={installed(p).split('+')[0]}" for p in REQUIREMENTS] + [f"mlflow=={installed('mlflow')}"],
        )  # fmt: skip
    client.set_terminated(
        run_id, status if status in ("FINISHED", "FAILED", "KILLED") else "FINISHED"
    )  # start_run reopened it
    try:
        client.create_registered_model(name)
    except MlflowException as e:
        if e.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    tags = {CONTENT: content, PRINT: fingerprint, TEST: test_sha256, SCORE: repr(bits_per_byte)}
    return client.create_model_version(name, info.model_uri, run_id=run_id, tags=tags, model_id=info.model_id)


def _run_of(client: MlflowClient, uri: str, experiment: str, fingerprint: str) -> str:
    """The training's run, by its fingerprint; one is made when the model was trained elsewhere and restored here."""
    where = experiment_id(client, uri, experiment)
    runs = client.search_runs([where], f"tags.`{PRINT}` = '{fingerprint}'", max_results=1)
    if runs:
        return runs[0].info.run_id
    tags = {**lineage_tags(), PRINT: fingerprint, "foundry.restored": "true"}
    return client.create_run(where, run_name=f"restored-{fingerprint[:8]}", tags=tags).info.run_id


def _aliases(
    client: MlflowClient, name: str, version: ModelVersion, bits_per_byte: float, test_sha256: str
) -> tuple[bool, str]:
    """Sets `challenger`, and `champion` when it is due: (is champion, why)."""
    client.set_registered_model_alias(name, "challenger", version.version)
    champion = client.get_registered_model(name).aliases.get("champion")
    if champion is None:
        client.set_registered_model_alias(name, "champion", version.version)
        return True, "the first version is the champion"
    if champion == version.version:
        return True, "it is the champion"
    old = client.get_model_version(name, champion).tags
    if old.get(TEST) != test_sha256:
        return (
            False,
            f"the champion (version {champion}) was tested on other text: compare them and set the alias by hand",
        )
    if bits_per_byte < float(old[SCORE]):
        client.set_registered_model_alias(name, "champion", version.version)
        return (
            True,
            f"{bits_per_byte:.4f} bits per byte, better than {float(old[SCORE]):.4f} of version {champion}: the new champion",
        )
    return (
        False,
        f"{bits_per_byte:.4f} bits per byte, not better than {float(old[SCORE]):.4f} of the champion (version {champion})",
    )
