"""The facts in `config.json` of a trained model, beside the architecture: one schema for its writer and its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from foundry.config import DataError
from foundry.utils.files import read_json
from foundry.utils.records import Record


class SkipDecision(Record):
    """At `step`, for `reason`, the run decided to skip `batches`."""

    step: int
    reason: str
    batches: list[int]


class TrainingFacts(Record):
    """What a training run was, without clock, host name or path.

    Attributes:
        fingerprint: hash of the run's identity.
        tokenizer_sha256, index_sha256: of the tokenizer and of the shard index (`ShardIndex.sha256`).
        steps, tokens: optimizer steps, and tokens that they read.
        skipped_batches: the decisions to skip batches; None if none was skipped.
        template_sha256: of the chat template in which the model learnt to answer; None: it is a base model.
        parent_sha256: the weights that the training began with; None: it began from scratch.
        base_sha256: the base model at the beginning of the chain of trainings; None: this one is it.
    """

    fingerprint: str
    tokenizer_sha256: str
    index_sha256: str
    steps: int
    tokens: int
    skipped_batches: list[SkipDecision] | None = None
    template_sha256: str | None = None
    parent_sha256: str | None = None
    base_sha256: str | None = None

    def to_json(self) -> dict[str, Any]:
        return self.model_dump(exclude_none=True)


class ModelFacts(TrainingFacts):
    """The facts of a trained model: those of its training, and `weights_sha256`, the hash of `model.safetensors`."""

    weights_sha256: str

    @classmethod
    def parse(cls, config: Any, path: Path) -> ModelFacts:
        """The facts in the content of a `config.json`.

        Raises:
            DataError: naming the facts that it lacks.
        """
        facts = {k: v for k, v in config.items() if k != "model"} if isinstance(config, dict) else config
        try:
            return cls.model_validate(facts)
        except ValidationError as e:
            wrong = ", ".join(".".join(map(str, error["loc"])) or "its content" for error in e.errors())
            raise DataError(
                f"{path} does not contain the facts of a training (missing or invalid: {wrong}): "
                "run the train stage (`dvc repro train`) or `dvc checkout`"
            ) from None


def read_facts(folder: str | Path) -> ModelFacts:
    """The facts of a trained model; its weights are not read.

    Raises:
        DataError: if there is no readable `config.json`, or it lacks a fact.
    """
    path = Path(folder) / "config.json"
    return ModelFacts.parse(read_json(path, "a trained model's facts; run the train stage", DataError), path)
