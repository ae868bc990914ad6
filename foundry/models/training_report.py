"""The schema of `reports/train.json`, which the train stage writes. Fields are in the order of the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from foundry.config import FoundryError
from foundry.models.facts import SkipDecision
from foundry.utils.files import write_json
from foundry.utils.records import Record


class TrainingReport(Record):
    """What was planned for a training, the facts of the run, and its last losses.

    Attributes:
        steps, tokens: what was trained.
        epochs: planned tokens / `tokens_per_epoch`.
        first_loss: nats of a uniform guess, ln(vocabulary).
        checkpoint_bytes: of weights and moments in float32.
        skipped_batches: absent from the file if none was skipped.
        loss: of the last step, in nats per token.
        val_loss, val_bits_per_byte: of the last validation; val_loss in nats per token.
    """

    params: int
    non_embedding_params: int
    steps: int
    tokens_per_step: int
    tokens: int
    tokens_per_epoch: int
    epochs: float
    flops_per_token: int
    flops: int
    first_loss: float
    checkpoint_bytes: int
    fingerprint: str
    tokenizer_sha256: str
    index_sha256: str
    skipped_batches: list[SkipDecision] | None = None
    loss: float
    val_loss: float
    val_bits_per_byte: float

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump(exclude_none=True))


def read_training(path: str | Path, error: Callable[[str], Exception] = FoundryError) -> TrainingReport:
    """Reads `reports/train.json`.

    Raises:
        error: if the file is missing, is not readable JSON, or does not follow the schema.
    """
    return TrainingReport.read(path, "the report of the train stage; run `dvc repro train`", error)
