"""Stage sft: data/chat/, artifacts/model/ → artifacts/chat/sft/, reports/chat_sft.json, its curves as CSV.

With `sft.method: lora`, artifacts/chat/sft/adapter/ has the adapter, and artifacts/chat/sft/ the model with the adapter
merged, so that every later stage reads one kind of model. Checkpoints are in .foundry/train/<fingerprint>/: the same
command resumes an interrupted run, bit for bit.
"""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.sft import FineTuning, Folders
from foundry.config import Config
from foundry.models import save_model
from foundry.models.adapter_files import save_adapter
from foundry.tracking import DatasetRef, Tracker, tracking_uri
from foundry.tracking.names import STAGE
from foundry.utils.distributed import launch, world
from foundry.utils.files import write_rows
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    if launch(cfg.runtime, "stages.sft"):
        return
    with world(cfg.runtime) as here:
        tuning = FineTuning(cfg.sft, Folders(), seed=cfg.seed, runtime=cfg.runtime, world=here)
        trainer = tuning.trainer
        index = trainer.identity["index_sha256"]
        with Tracker(
            trainer.folder,
            uri=tracking_uri(cfg.runtime),
            experiment=cfg.runtime.experiment,
            run_name=f"sft-{trainer.fingerprint[:8]}",
            fingerprint=trainer.fingerprint,
            params={
                "seed": cfg.seed,
                "model": trainer.model_config.model_dump(),
                "sft": cfg.sft.model_dump(),
                **{k: trainer.identity[k] for k in ("index_sha256", "tokenizer_sha256", "template_sha256")},
                "parent_sha256": tuning.base.weights_sha256,
            },
            tags={STAGE: "sft"},
            datasets=[DatasetRef(name="data/chat", digest=index[:36], path="data/chat", context="train")],
            enabled=cfg.runtime.tracking and here.main,
        ) as tracker:
            tuned = tuning.run([tracker])
        if tuned is None:
            return
        save_model("artifacts/chat/sft", tuned.model, tuned.facts)
        if tuned.adapted is not None:
            save_adapter("artifacts/chat/sft/adapter", tuned.adapted, tuning.base.weights_sha256, tuned.facts)
        write_rows("reports/chat_sft.csv", tuned.curve)
        write_rows("reports/chat_sft_validation.csv", tuned.validations)
        tuned.report.write("reports/chat_sft.json")
        log.info("wrote artifacts/chat/sft: %s, %d steps", tuned.report.method, tuned.report.steps)


def main() -> None:
    run_stage("sft", work)


if __name__ == "__main__":
    main()
