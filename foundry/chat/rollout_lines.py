"""The rollouts of one step, as a person reads them: which answers taught it what."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from foundry.chat.rollout_statistics import lines, statistics
from foundry.chat.rollouts import Rollout

SHOWN = 160  # characters of an answer


def rollout_lines(step: int, rollouts: Sequence[Rollout], full: bool) -> Iterator[str]:
    """Describes the rollouts of a step, group after group: reward and advantage of every answer.

    Args:
        step: counted from 1.
        full: whether long texts are shown in full.
    """
    yield from lines(step, statistics(rollouts))
    for prompt, group in groupby(rollouts, lambda r: r.prompt):
        answers = list(group)
        first = answers[0]
        origin = "" if first.doc_id is None else f", from {first.doc_id}"
        taught = sum(r.counted for r in answers)
        yield f"prompt {prompt} ({first.task}{origin}; {taught} of {len(answers)} answers taught): {first.question!r}"
        for r in answers:
            how = "cut off" if r.truncated else "ended" if r.ended else "ended by another symbol"
            why = f"advantage {r.advantage:+.3f}" if r.counted else "not counted"
            parts = "".join(f", {name} {value:.2f}" for name, value in r.parts.items())
            text = r.text if full or len(r.text) <= SHOWN else f"{r.text[: SHOWN - 40]} … {r.text[-35:]}"
            yield f"  {r.sample}: reward {r.reward:.3f}{parts}; {why}; {how}, {len(r.ids)} tokens: {text!r}"
