"""The stages that learn from pairs of answers, reward and dpo: they differ in their section of the parameters."""

from __future__ import annotations

import logging
from typing import Literal

from foundry.chat.pair_training import PairFolders, PairTraining
from foundry.chat.stage_parts import run_of, write_trained
from foundry.config import Config
from foundry.utils.distributed import launch, world


def train_on_pairs(stage: Literal["reward", "dpo"], cfg: Config, log: logging.Logger) -> None:
    """artifacts/chat/sft/, data/preferences/ → artifacts/chat/STAGE/, reports/chat_STAGE.json and its curves."""
    if launch(cfg.runtime, f"stages.{stage}"):
        return
    with world(cfg.runtime) as here:
        section = cfg.reward if stage == "reward" else cfg.dpo
        training = PairTraining(section, PairFolders(), seed=cfg.seed, runtime=cfg.runtime, world=here)
        parent = training.known.weights_sha256
        with run_of(stage, training.trainer, cfg, "data/preferences", training.loader.identity, parent) as tracker:
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
