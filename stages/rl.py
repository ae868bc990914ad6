"""Stage rl: artifacts/chat/sft/, data/chat/ → artifacts/chat/rl/, its rollouts, reports/chat_rl.json, curves as CSV.

With `rl.method: lora`, artifacts/chat/rl/adapter/ has the adapter, and artifacts/chat/rl/ the model with the adapter
merged. Checkpoints and the rollouts of each step are in .foundry/train/<fingerprint>/: the same command resumes an
interrupted run, bit for bit.
"""

import logging
from pathlib import Path

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.rl_training import RewardTraining, RlFolders
from foundry.chat.rollouts import ROLLOUTS
from foundry.config import Config
from foundry.models import save_model
from foundry.models.adapter_files import save_adapter
from foundry.tracking import DatasetRef, Tracker, tracking_uri
from foundry.tracking.names import STAGE
from foundry.utils.distributed import launch, world
from foundry.utils.files import write_rows
from foundry.utils.inputs import find_inputs
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    if launch(cfg.runtime, "stages.rl"):
        return
    with world(cfg.runtime) as here:
        programs = [path for p in cfg.chat.verifiers for path in find_inputs(p, Path(), "chat.verifiers")]
        training = RewardTraining(
            cfg.rl, RlFolders(), seed=cfg.seed, runtime=cfg.runtime, world=here, programs=programs
        )
        trainer = training.trainer
        index = trainer.identity["index_sha256"]
        with Tracker(
            trainer.folder,
            uri=tracking_uri(cfg.runtime),
            experiment=cfg.runtime.experiment,
            run_name=f"rl-{trainer.fingerprint[:8]}",
            fingerprint=trainer.fingerprint,
            params={
                "seed": cfg.seed,
                "model": trainer.model_config.model_dump(),
                "rl": cfg.rl.model_dump(),
                **training.loader.identity,
                "parent_sha256": training.known.weights_sha256,
            },
            tags={STAGE: "rl"},
            datasets=[DatasetRef(name="data/chat", digest=index[:36], path="data/chat", context="train")],
            enabled=cfg.runtime.tracking and here.main,
        ) as tracker:
            learnt = training.run(Path(ROLLOUTS), [tracker])
        if learnt is None:
            return
        save_model("artifacts/chat/rl", learnt.model, learnt.facts)
        if learnt.adapted is not None:
            save_adapter("artifacts/chat/rl/adapter", learnt.adapted, training.known.weights_sha256, learnt.facts)
        numbers = [step.metrics() for step in learnt.steps]
        names = sorted({name for row in numbers for name in row})
        rows = [{"step": i, **{n: row.get(n, "") for n in names}} for i, row in enumerate(numbers, start=1)]
        write_rows("reports/chat_rl.csv", rows)
        write_rows("reports/chat_rl_validation.csv", learnt.validations)
        learnt.report.write("reports/chat_rl.json")
        log.info(
            "wrote artifacts/chat/rl and %s: %d answers, %d of which taught",
            ROLLOUTS,
            learnt.report.rollouts,
            learnt.report.live,
        )


def main() -> None:
    run_stage("rl", work)


if __name__ == "__main__":
    main()
