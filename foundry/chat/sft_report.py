"""The schema of `reports/chat_sft.json`, which the sft stage writes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from foundry.models.facts import SkipDecision
from foundry.utils.files import write_json
from foundry.utils.records import Record


class SftReport(Record):
    """What was planned for a fine-tuning, the facts of the run, and what it gained and lost.

    Attributes:
        params, trained_params: of the model, and those that were trained.
        epochs: how often the chat data was read.
        learnt_share: share of the places in the rows whose token is learnt, pre-training rows left out.
        too_long: examples that were left out because they are longer than a row.
        before, after: metrics of the validation (see `HeldOutAnswers`) of the base and of the trained model.
        on_exact_base: with int8 weights of the base, the same of the adapter on the exact ones.
    """

    method: Literal["full", "lora"]
    params: int
    trained_params: int
    steps: int
    tokens_per_step: int
    tokens: int
    tokens_per_epoch: int
    epochs: float
    pretraining_share: float
    learnt_share: float
    too_long: int
    flops: int
    fingerprint: str
    tokenizer_sha256: str
    index_sha256: str
    template_sha256: str
    base_sha256: str
    parent_sha256: str
    skipped_batches: list[SkipDecision] | None = None
    loss: float
    before: dict[str, float]
    after: dict[str, float]
    on_exact_base: dict[str, float] | None = None

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump(exclude_none=True))
