"""The stages that learn from pairs of answers, reward and dpo: they differ in their section of the parameters."""

from __future__ import annotations

import logging
from typing import Literal

from foundry.chat.pair_training import PairFolders, PairTraining
from foundry.chat.stage_parts import run_of, write_trained
from foundry.config import Runtime
from foundry.config.chat import Dpo, Reward
from foundry.utils.distributed import launch, world


def train_on_pairs(
    stage: Literal["reward", "dpo"], params: Reward | Dpo, seed: int, runtime: Runtime, log: logging.Logger
) -> None:
    """artifacts/chat/sft/, data/preferences/ → artifacts/chat/STAGE/, reports/chat_STAGE.json and its curves."""
    if launch(runtime, f"stages.{stage}"):
        return
    with world(runtime) as here:
        training = PairTraining(params, PairFolders(), seed=seed, runtime=runtime, world=here)
        parent = training.known.weights_sha256
        with run_of(stage, params, training.trainer, "data/preferences", training.loader.identity, parent) as tracker:
            trained = training.run([tracker])
        if trained is None:
            return
        write_trained(stage, trained, trained.curve, parent)
        accuracy = trained.report.accuracy
        log.info(
            "wrote artifacts/chat/%s: held-out accuracy %.3f [%.3f, %.3f], 'the longer wins' %.3f",
            stage,
            accuracy.value,
            accuracy.low,
            accuracy.high,
            trained.report.longer_wins.value,
        )
