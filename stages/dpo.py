"""Stage dpo: artifacts/chat/sft/, data/preferences/ → artifacts/chat/dpo/, reports/chat_dpo.json, its curves as CSV.

With `dpo.method: lora`, artifacts/chat/dpo/adapter/ has the adapter, and artifacts/chat/dpo/ the model with the
adapter merged. Checkpoints are in .foundry/train/<fingerprint>/: the same command resumes an interrupted run, bit for
bit.
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
    if launch(cfg.runtime, "stages.dpo"):
        return
    with world(cfg.runtime) as here:
        training = PairTraining(cfg.dpo, PairFolders(), seed=cfg.seed, runtime=cfg.runtime, world=here)
        trainer = training.trainer
        index = trainer.identity["index_sha256"]
        with Tracker(
            trainer.folder,
            uri=tracking_uri(cfg.runtime),
            experiment=cfg.runtime.experiment,
            run_name=f"dpo-{trainer.fingerprint[:8]}",
            fingerprint=trainer.fingerprint,
            params={
                "seed": cfg.seed,
                "model": trainer.model_config.model_dump(),
                "dpo": cfg.dpo.model_dump(),
                **training.loader.identity,
                "parent_sha256": training.known.weights_sha256,
            },
            tags={STAGE: "dpo"},
            datasets=[DatasetRef(name="data/preferences", digest=index[:36], path="data/preferences", context="train")],
            enabled=cfg.runtime.tracking and here.main,
        ) as tracker:
            trained = training.run([tracker])
        if trained is None:
            return
        save_model("artifacts/chat/dpo", trained.model, trained.facts)
        if trained.adapted is not None:
            save_adapter("artifacts/chat/dpo/adapter", trained.adapted, training.known.weights_sha256, trained.facts)
        write_rows("reports/chat_dpo.csv", trained.curve)
        write_rows("reports/chat_dpo_validation.csv", trained.validations)
        trained.report.write("reports/chat_dpo.json")
        accuracy = trained.report.accuracy
        log.info(
            "wrote artifacts/chat/dpo: held-out accuracy %.3f [%.3f, %.3f], 'the longer wins' %.3f",
            accuracy.value,
            accuracy.low,
            accuracy.high,
            trained.report.longer_wins.value,
        )


def main() -> None:
    run_stage("dpo", work)


if __name__ == "__main__":
    main()
