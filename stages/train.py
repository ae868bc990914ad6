"""Stage train: data/shards/ → artifacts/model/, reports/train.json, train.csv, validation.csv.

Checkpoints are in .foundry/train/<fingerprint>/, outside the outs: the same command resumes an interrupted run, bit for
bit.
"""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.config import Config
from foundry.models import save_model
from foundry.models.training_report import TrainingReport
from foundry.tracking import DatasetRef, Tracker, tracking_uri
from foundry.tracking.names import STAGE
from foundry.training.trainer import Trainer
from foundry.utils.distributed import launch, world
from foundry.utils.files import write_rows
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    if launch(cfg.runtime, "stages.train"):
        return
    with world(cfg.runtime) as here:
        trainer = Trainer.from_shards(
            cfg.model, cfg.train, "data/shards", seed=cfg.seed, runtime=cfg.runtime, world=here
        )
        index = trainer.identity["index_sha256"]
        with Tracker(
            trainer.folder,
            uri=tracking_uri(cfg.runtime),
            experiment=cfg.runtime.experiment,
            run_name=f"{cfg.export.model_name}-{trainer.fingerprint[:8]}",
            fingerprint=trainer.fingerprint,
            params={
                **{k: v for k, v in cfg.identity().items() if k not in ("evaluate", "export")},
                **{k: trainer.identity[k] for k in ("index_sha256", "tokenizer_sha256")},
            },
            tags={STAGE: "train"},
            datasets=[DatasetRef(name="data/shards", digest=index[:36], path="data/shards", context="train")],
            enabled=cfg.runtime.tracking and here.main,
        ) as tracker:
            trainer.callbacks.append(tracker)
            result = trainer.fit()
        if not here.main:
            return
        save_model("artifacts/model", result.model, result.facts)
        write_rows("reports/train.csv", result.curve)
        write_rows("reports/validation.csv", result.validations)
        last = result.validations[-1]
        report = TrainingReport(
            **{**trainer.plan.to_dict(), **result.facts.to_json()},
            loss=result.curve[-1]["loss"],
            val_loss=last["val_loss"],
            val_bits_per_byte=last["val_bits_per_byte"],
        )
        report.write("reports/train.json")
        log.info(
            "wrote artifacts/model: %d steps, validation %.4f bits per byte", report.steps, report.val_bits_per_byte
        )


def main() -> None:
    run_stage("train", work)


if __name__ == "__main__":
    main()
