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
from foundry.chat.stage_parts import run_of, write_trained
from foundry.config import Config
from foundry.utils.distributed import launch, world
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
        parent = training.known.weights_sha256
        with run_of("rl", cfg.rl, training.trainer, "data/chat", training.loader.identity, parent) as tracker:
            learnt = training.run(Path(ROLLOUTS), [tracker])
        if learnt is None:
            return
        numbers = [step.metrics() for step in learnt.steps]
        names = sorted({name for row in numbers for name in row})
        rows = [{"step": i, **{n: row.get(n, "") for n in names}} for i, row in enumerate(numbers, start=1)]
        write_trained("rl", learnt, rows, parent)
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
