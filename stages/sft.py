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
from foundry.chat.stage_parts import run_of, write_trained
from foundry.config import Config
from foundry.utils.distributed import launch, world
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    if launch(cfg.runtime, "stages.sft"):
        return
    with world(cfg.runtime) as here:
        tuning = FineTuning(cfg.sft, Folders(), seed=cfg.seed, runtime=cfg.runtime, world=here)
        parent = tuning.base.weights_sha256
        identity = {k: tuning.trainer.identity[k] for k in ("index_sha256", "tokenizer_sha256", "template_sha256")}
        with run_of("sft", cfg.sft, tuning.trainer, "data/chat", identity, parent) as tracker:
            tuned = tuning.run([tracker])
        if tuned is None:
            return
        write_trained("sft", tuned, tuned.curve, parent)
        log.info("wrote artifacts/chat/sft: %s, %d steps", tuned.report.method, tuned.report.steps)


def main() -> None:
    run_stage("sft", work)


if __name__ == "__main__":
    main()
