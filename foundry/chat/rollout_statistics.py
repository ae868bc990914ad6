"""What a batch of rollouts shows, with the ranges in which a training is usually healthy.

The ranges are those of axolotl's guide to stability (https://docs.axolotl.ai), except for the entropy, whose upper end
depends on the task and the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby

import numpy as np

from foundry.chat.rollouts import Rollout
from foundry.data.text.words import gram_words
from foundry.utils.events import Callback, MetricsCallback, StepDone
from foundry.utils.log import get_logger


@dataclass(frozen=True)
class Statistics:
    """Of one batch. Shares are of answers unless it is said otherwise.

    Attributes:
        reward: its mean; passed: share with the reward 1.
        reward_std: deviation within a group, the mean over groups.
        parts: mean of each named part of the reward, over the answers that have it.
        dead_groups: share of the groups whose rewards are all equal, which teach nothing.
        truncated: share that met the limit of tokens; ended: share that ended its turn.
        length: tokens of an answer; ended_length: of one that ended.
        distinct_4: share of different runs of four words within an answer, the mean; None if all are shorter.
        entropy: nats per token, estimated by the drawn tokens.
        kl: divergence from the parent in nats per token (k3).
        parity, parity_max: mean and largest difference between the log-probabilities of sampler and trainer.
    """

    reward: float
    passed: float
    reward_std: float
    parts: dict[str, float]
    dead_groups: float
    truncated: float
    ended: float
    length: float
    ended_length: float | None
    distinct_4: float | None
    entropy: float
    kl: float
    parity: float
    parity_max: float

    def metrics(self) -> dict[str, float]:
        """By name, for curves."""
        plain = {k: v for k, v in asdict(self).items() if k != "parts" and v is not None}
        return {**plain, **{f"parts/{k}": v for k, v in self.parts.items()}}


@dataclass(frozen=True)
class Range:
    """Where a number is usually healthy.

    Args:
        low, high: None: no bound.
    """

    label: str
    low: float | None
    high: float | None

    def holds(self, value: float) -> bool:
        return (self.low is None or value > self.low) and (self.high is None or value < self.high)

    def __str__(self) -> str:
        bounds = {"over": self.low, "under": self.high}
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds.items() if bound is not None)


RANGES = {
    "reward_std": Range("deviation in a group", 0.0, None),
    "dead_groups": Range("groups with equal rewards", None, 0.8),
    "truncated": Range("cut off at the limit", None, 0.3),
    "entropy": Range("entropy", 0.05, None),
    "kl": Range("KL to the parent", None, 0.5),
    "parity": Range("sampler against trainer", None, 0.1),
}


def statistics(rollouts: Sequence[Rollout]) -> Statistics:
    """Of the rollouts of one batch, group after group."""
    groups = [list(g) for _, g in groupby(rollouts, lambda r: (r.batch, r.prompt))]
    drawn, mine, parents = (
        np.concatenate([np.array(getattr(r, name), np.float64) for r in rollouts])
        for name in ("logprobs", "trainer_logprobs", "parent_logprobs")
    )
    gap = np.abs(drawn - mine)
    away = parents - mine
    names = sorted({name for r in rollouts for name in r.parts})
    ended = [len(r.ids) for r in rollouts if r.ended]
    distinct = [d for r in rollouts if (d := _distinct_4(r.text)) is not None]
    return Statistics(
        reward=_mean([r.reward for r in rollouts]),
        passed=_mean([r.reward >= 1 for r in rollouts]),
        reward_std=_mean([float(np.std([r.reward for r in g])) for g in groups]),
        parts={name: _mean([r.parts[name] for r in rollouts if name in r.parts]) for name in names},
        dead_groups=_mean([not any(r.counted for r in g) for g in groups]),
        truncated=_mean([r.truncated for r in rollouts]),
        ended=_mean([r.ended for r in rollouts]),
        length=_mean([len(r.ids) for r in rollouts]),
        ended_length=_mean(ended) if ended else None,
        distinct_4=_mean(distinct) if distinct else None,
        entropy=-_mean(drawn),
        kl=_mean(np.exp(np.minimum(away, 50.0)) - 1 - away),
        parity=_mean(gap),
        parity_max=float(gap.max()),
    )


def lines(step: int, seen: Statistics) -> list[str]:
    """For the log: the reward, and each number beside its healthy range; `!` marks one outside it."""
    parts = "".join(f", {name} {value:.2f}" for name, value in seen.parts.items())
    first = (
        f"step {step}: reward {seen.reward:.3f} (passed {seen.passed:.0%}{parts}), ended {seen.ended:.0%}, "
        f"{seen.length:.1f} tokens"
    )
    values = {name: getattr(seen, name) for name in RANGES}
    second = "; ".join(
        f"{'' if r.holds(values[name]) else '! '}{r.label} {values[name]:.3g} ({r})" for name, r in RANGES.items()
    )
    return [first, second]


def _mean(values: Sequence[float] | np.ndarray) -> float:
    return math.fsum(values) / len(values)


def _distinct_4(text: str) -> float | None:
    words = gram_words(text)
    runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
    return len(set(runs)) / len(runs) if runs else None


class RolloutCurves(Callback):
    """Logs the statistics of each step's rollouts.

    Args:
        last: the statistics of the batch that was made last.
        sinks: get the numbers of each step, such as the tracker of MLflow.
    """

    def __init__(self, last: Callable[[], Statistics | None], sinks: Sequence[MetricsCallback] = ()) -> None:
        self.last, self.sinks = last, list(sinks)

    def on_step(self, event: StepDone) -> None:
        if (seen := self.last()) is None:
            return
        for sink in self.sinks:
            sink.log(event.step, {f"rollouts/{k}": v for k, v in seen.metrics().items()})
        if event.logged:
            for line in lines(event.step, seen):
                get_logger().info("%s", line)
