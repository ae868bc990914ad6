"""Stage reward: artifacts/chat/sft/, data/preferences/ → artifacts/chat/reward/, reports/chat_reward.json and curves.

With `reward.method: lora`, artifacts/chat/reward/adapter/ has the adapter, and artifacts/chat/reward/ the model with
the adapter merged. Checkpoints are in .foundry/train/<fingerprint>/: the same command resumes an interrupted run, bit
for bit.
"""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.pair_training import PairFolders, PairTraining
from foundry.config import Config
from foundry.models import save_model
from foundry.models.adapter_files import save_adapter
from foundry.tracking import DatasetRef, Tracker, tracking_uri
from foundry.tracking.names import STAGE
from foundry.utils.distributed import launch, world
from foundry.utils.files import write_rows
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    if launch(cfg.runtime, "stages.reward"):
        return
    with world(cfg.runtime) as here:
        training = PairTraining(cfg.reward, PairFolders(), seed=cfg.seed, runtime=cfg.runtime, world=here)
        trainer = training.trainer
        index = trainer.identity["index_sha256"]
        with Tracker(
            trainer.folder,
            uri=tracking_uri(cfg.runtime),
            experiment=cfg.runtime.experiment,
            run_name=f"reward-{trainer.fingerprint[:8]}",
            fingerprint=trainer.fingerprint,
            params={
                "seed": cfg.seed,
                "model": trainer.model_config.model_dump(),
                "reward": cfg.reward.model_dump(),
                **training.loader.identity,
                "parent_sha256": training.known.weights_sha256,
            },
            tags={STAGE: "reward"},
            datasets=[DatasetRef(name="data/preferences", digest=index[:36], path="data/preferences", context="train")],
            enabled=cfg.runtime.tracking and here.main,
        ) as tracker:
            trained = training.run([tracker])
        if trained is None:
            return
        save_model("artifacts/chat/reward", trained.model, trained.facts)
        if trained.adapted is not None:
            save_adapter("artifacts/chat/reward/adapter", trained.adapted, training.known.weights_sha256, trained.facts)
        write_rows("reports/chat_reward.csv", trained.curve)
        write_rows("reports/chat_reward_validation.csv", trained.validations)
        trained.report.write("reports/chat_reward.json")
        accuracy = trained.report.accuracy
        log.info(
            "wrote artifacts/chat/reward: held-out accuracy %.3f [%.3f, %.3f], 'the longer wins' %.3f",
            accuracy.value,
            accuracy.low,
            accuracy.high,
            trained.report.longer_wins.value,
        )


def main() -> None:
    run_stage("reward", work)


if __name__ == "__main__":
    main()
