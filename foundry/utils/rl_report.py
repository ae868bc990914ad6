"""The schema of `reports/rl.json`, which the rl stage writes. Fields are in the order of the file. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from foundry.utils.bootstrap import Interval
from foundry.utils.files import write_json
from foundry.utils.records import Record


class ProbedTask(Record):
    """What answers to a task earn before the training.

    Attributes:
        prompts, samples: how many were answered, and how often each.
        passed: share of answers with the reward 1, with its interval over prompts; reward: the mean.
        live: share of the prompts whose answers have different rewards.
        truncated: share of the answers that met the limit.
        length: tokens of the answers that ended, the 95 % quantile; None if none did.
    """

    task: str
    prompts: int
    samples: int
    passed: Interval
    reward: float
    live: float
    truncated: float
    length: int | None


class RlReport(Record):
    """What was learnt by reward.

    Attributes:
        parent_sha256: weights that the training began with.
        rollouts, rollouts_sha256: how many answers were drawn, and the hash of their file.
        live: answers that the steps learnt from.
        reward_first, reward_last: mean reward of the first and of the last tenth of the steps.
        kl: divergence from the parent in nats per token, of the last step; entropy: likewise.
        parity_max: largest difference between the log-probabilities of sampler and trainer, over all steps.
        before, after: metrics of the validation before the first and after the last step.
    """

    fingerprint: str
    parent_sha256: str
    steps: int
    probe: list[ProbedTask]
    rollouts: int
    rollouts_sha256: str
    live: int
    reward_first: float
    reward_last: float
    kl: float
    entropy: float
    parity_max: float
    before: dict[str, float]
    after: dict[str, float]

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump())
