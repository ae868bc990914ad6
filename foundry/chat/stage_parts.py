"""What the stages sft, reward, dpo and rl share: their run in MLflow, and how a trained model is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from foundry.config.section import Section
from foundry.models import MiniLLM, save_model
from foundry.models.adapter_files import save_adapter
from foundry.models.facts import TrainingFacts
from foundry.tracking import DatasetRef, Tracker, tracking_uri
from foundry.tracking.names import STAGE
from foundry.training.trainer import Trainer
from foundry.utils.files import write_rows
from foundry.utils.records import Record


class Trained(Protocol):
    """What a training gives on the main process."""

    @property
    def model(self) -> MiniLLM: ...

    @property
    def facts(self) -> TrainingFacts: ...

    @property
    def adapted(self) -> MiniLLM | None: ...

    @property
    def validations(self) -> list[dict[str, float]]: ...

    @property
    def report(self) -> Record: ...


def run_of(
    stage: str, params: Section, trainer: Trainer, data: str, identity: Mapping[str, str], parent_sha256: str
) -> Tracker:
    """The run of a training in MLflow, on the main process.

    Args:
        params: the stage's section.
        data: folder of what it learns from.
        identity: hashes of what its batches depend on.
        parent_sha256: of the weights that it begins with.
    """
    return Tracker(
        trainer.folder,
        uri=tracking_uri(trainer.runtime),
        experiment=trainer.runtime.experiment,
        run_name=f"{stage}-{trainer.fingerprint[:8]}",
        fingerprint=trainer.fingerprint,
        params={
            "seed": trainer.seed,
            "model": trainer.model_config.model_dump(),
            stage: params.model_dump(),
            **identity,
            "parent_sha256": parent_sha256,
        },
        tags={STAGE: stage},
        datasets=[DatasetRef(name=data, digest=identity["index_sha256"][:36], path=data, context="train")],
        enabled=trainer.runtime.tracking and trainer.world.main,
    )


def write_trained(stage: str, trained: Trained, curve: Sequence[dict[str, Any]], parent_sha256: str) -> None:
    """Writes artifacts/chat/STAGE/, with the adapter if there is one, the two curves and the report.

    Args:
        curve: one row per point.
        parent_sha256: of the weights that an adapter belongs to.
    """
    folder = Path("artifacts/chat") / stage
    save_model(folder, trained.model, trained.facts)
    if trained.adapted is not None:
        save_adapter(folder / "adapter", trained.adapted, parent_sha256, trained.facts)
    write_rows(f"reports/chat_{stage}.csv", curve)
    write_rows(f"reports/chat_{stage}_validation.csv", trained.validations)
    trained.report.write(f"reports/chat_{stage}.json")
