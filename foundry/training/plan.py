"""What a run will do, derived before it begins (law 9): pure arithmetic, no torch."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from foundry.config import ModelConfig, TrainConfig
from foundry.models.accounting import count_params, train_flops_per_token


@dataclass(frozen=True)
class Plan:
    params: int
    non_embedding_params: int
    steps: int
    tokens_per_step: int
    tokens: int
    tokens_per_epoch: int
    epochs: float
    flops: int
    first_loss: float  # nats of a uniform guess, ln V
    checkpoint_bytes: int  # weights and two moments in float32

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        return [
            f"model: {self.params:,} parameters ({self.non_embedding_params:,} without the embedding)",
            f"data: {self.tokens:,} tokens = {self.steps:,} steps x {self.tokens_per_step:,}; {self.epochs:.2f} epochs of {self.tokens_per_epoch:,}",
            f"work: {self.flops:.2e} floating-point operations; a checkpoint takes about {self.checkpoint_bytes / 2**20:.0f} MiB",
            f"expected first loss: ln V = {self.first_loss:.3f}",
        ]


def make_plan(model: ModelConfig, train: TrainConfig, tokens_per_epoch: int) -> Plan:
    tokens = train.steps * train.tokens_per_step
    params = count_params(model)
    return Plan(
        params=params,
        non_embedding_params=count_params(model, non_embedding=True),
        steps=train.steps,
        tokens_per_step=train.tokens_per_step,
        tokens=tokens,
        tokens_per_epoch=tokens_per_epoch,
        epochs=round(tokens / tokens_per_epoch, 4),
        flops=tokens * train_flops_per_token(model),
        first_loss=round(math.log(model.vocab_size), 4),
        checkpoint_bytes=params * 12,
    )
