"""What a model's answers earn before reinforcement learning begins: can these rewards teach it anything?

A group teaches only if its rewards differ. Where no answer is right, or all are, no group does, and hours pass without
a step (mistake 23 of the research page); where the limit cuts the answers off, nothing counts (mistake 24).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foundry.chat.rl import Judge, judged, verified
from foundry.chat.rollouts import Prompt, Rollout, draw, rollout_seed
from foundry.config import ConfigError
from foundry.evaluation.intervals import ratio_interval
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.utils.rl_report import ProbedTask

PROBE = 2**40  # its number as a batch: no step has it
MOST_TRUNCATED = 0.5  # share of the answers
RESAMPLES = 1000


def problem_of(task: ProbedTask, limit: int) -> str | None:
    """Why a task cannot be learnt; None if it can."""
    if task.truncated > MOST_TRUNCATED:
        known = f"95 % of those that ended have at most {task.length}" if task.length else "none ended by itself"
        return (
            f"{task.truncated:.0%} of the answers met the limit of {limit} tokens, and what is cut off teaches "
            f"nothing ({known}): raise rl.max_new_tokens, or train the parent longer"
        )
    if not task.live:
        what = "leave the task out of rl.tasks" + ("" if task.passed.value == 1 else ", or train the parent longer")
        return (
            f"{task.passed.value:.0%} of the answers are right, and no prompt had answers with different rewards, so "
            f"no step would change a weight: {what}"
        )
    return None


def probe(
    model: MiniLLM,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    *,
    per_task: int,
    samples: int,
    limit: int,
    seed: int,
    judge: Judge = verified,
) -> list[ProbedTask]:
    """Answers some prompts of each task, evenly from the whole pool; a function of the weights and the arguments."""
    tasks: dict[str, list[int]] = {}
    for number, prompt in enumerate(prompts):
        tasks.setdefault(prompt.task, []).append(number)
    chosen = [n for numbers in tasks.values() for n in numbers[:: max(1, len(numbers) // per_task)][:per_task]]
    seeds = [[rollout_seed(seed, PROBE, n, s) for s in range(samples)] for n in chosen]
    asked = [prompts[n].ids for n in chosen for _ in range(samples)]
    drawn = draw(model, tokenizer, asked, [s for group in seeds for s in group], limit)
    groups = [
        judged(PROBE, n, prompts[n], drawn[i * samples : (i + 1) * samples], seeds[i], judge)
        for i, n in enumerate(chosen)
    ]
    return [_summary(task, [g for g in groups if g[0].task == task], seed) for task in sorted(tasks)]


def _summary(task: str, groups: list[list[Rollout]], seed: int) -> ProbedTask:
    every = [r for g in groups for r in g]
    right = np.array([sum(r.reward >= 1 for r in g) for g in groups])
    lengths = [len(r.ids) for r in every if r.ended]
    return ProbedTask(
        task=task,
        prompts=len(groups),
        samples=len(groups[0]),
        passed=ratio_interval(right, np.full(len(groups), len(groups[0])), RESAMPLES, seed),
        reward=sum(r.reward for r in every) / len(every),
        live=sum(any(r.counted for r in g) for g in groups) / len(groups),
        truncated=sum(r.truncated for r in every) / len(every),
        length=int(np.quantile(lengths, 0.95, method="higher")) if lengths else None,
    )


def probe_lines(found: Sequence[ProbedTask]) -> list[str]:
    """The table that is printed before the training."""
    wide = max(len("task"), *(len(t.task) for t in found))
    head = f"{'task':{wide}}  prompts  right (95 % interval)  reward  prompts that teach  cut off  tokens (95 %)"
    rows = [
        f"{t.task:{wide}}  {t.prompts:7}  {t.passed.value:6.1%} ({t.passed.low:.1%} to {t.passed.high:.1%})".ljust(
            wide + 34
        )
        + f"{t.reward:6.3f}  {t.live:18.0%}  {t.truncated:7.0%}  {t.length if t.length else '-':>13}"
        for t in found
    ]
    return [head, *rows]


def check_probe(found: Sequence[ProbedTask], limit: int) -> None:
    """Refuses tasks that cannot be learnt.

    Raises:
        ConfigError: naming each with the reason.
    """
    if problems := [f"{t.task}: {why}" for t in found if (why := problem_of(t, limit))]:
        raise ConfigError("these rewards teach nothing:" + "".join(f"\n  - {p}" for p in problems))
