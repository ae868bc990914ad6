"""Stage dpo: artifacts/chat/sft/, data/preferences/ → artifacts/chat/dpo/, reports/chat_dpo.json, its curves as CSV.

With `dpo.method: lora`, artifacts/chat/dpo/adapter/ has the adapter, and artifacts/chat/dpo/ the model with the
adapter merged. Checkpoints are in .foundry/train/<fingerprint>/: the same command resumes an interrupted run, bit for
bit.
"""

import logging

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before torch is imported

from foundry.chat.pair_stage import train_on_pairs
from foundry.config import Config
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    train_on_pairs("dpo", cfg.dpo, cfg.seed, cfg.runtime, log)


def main() -> None:
    run_stage("dpo", work)


if __name__ == "__main__":
    main()
