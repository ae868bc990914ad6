"""What tables of answers say, with 95 % intervals: shares by task and wording, differences of two models.

The bootstrap draws documents (a prompt without one stands for itself), because the prompts that were made from one
document depend on each other. The primary metric is the macro mean: every task whose answers are right or wrong counts
alike, however many prompts it has. Two models are compared on the same prompts, so the difficulty of a prompt cancels
out. Imports no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from foundry.chat.table import same_prompts
from foundry.data.text.words import gram_words
from foundry.evaluation.compare import sign_flips
from foundry.evaluation.intervals import ratio_interval
from foundry.utils.bootstrap import Interval, bootstrap_counts, percentiles_95
from foundry.utils.chat_report import ByWording, Paired, PassRates, TaskAnswers


@dataclass(frozen=True)
class Draws:
    """How the bootstrap draws.

    Args:
        resamples: how often.
    """

    resamples: int
    seed: int


def mean(values: np.ndarray, units: Sequence[str], draws: Draws) -> Interval:
    """The mean over prompts of (prompts,), with its interval over units."""
    return ratio(values, np.ones(len(values)), units, draws)


def ratio(above: np.ndarray, below: np.ndarray, units: Sequence[str], draws: Draws) -> Interval | None:
    """sum(above) / sum(below) over prompts; None if `below` is zero everywhere."""
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    return ratio_interval(
        np.bincount(unit, np.asarray(above, np.float64)),
        np.bincount(unit, np.asarray(below, np.float64)),
        draws.resamples,
        draws.seed,
    )


def macro(values: np.ndarray, tasks: Sequence[str], units: Sequence[str], draws: Draws) -> Interval:
    """The mean over tasks of the mean over their prompts.

    Args:
        values: float (prompts,), of at least one prompt.
    """
    names, task = np.unique(np.asarray(tasks), return_inverse=True)
    all_units, unit = np.unique(np.asarray(units), return_inverse=True)
    shape = (len(all_units), len(names))
    cell = unit * shape[1] + task
    above = np.bincount(cell, np.asarray(values, np.float64), shape[0] * shape[1]).reshape(shape)
    below = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape).astype(np.float64)
    parts = []
    for times in bootstrap_counts(len(all_units), draws.resamples, draws.seed):
        over = times @ below
        shares = np.divide(times @ above, over, out=np.zeros(over.shape), where=over > 0)
        parts.append(shares.sum(1) / (over > 0).sum(1))  # a task that a draw has no prompt of is left out of it
    value = (above.sum(0) / below.sum(0)).mean()
    return Interval.rounded(value, *percentiles_95(np.concatenate(parts)), 4)


def macro_exact(table: pa.Table, draws: Draws) -> ByWording | None:
    """The primary metric; None without a task whose answers are right or wrong."""
    return _by_wording(table.filter(table["primary"]), draws, by_task=True)


def _by_wording(table: pa.Table, draws: Draws, *, by_task: bool = False) -> ByWording | None:
    def share(at: np.ndarray) -> Interval | None:
        if not at.any():
            return None
        part = table.filter(pa.array(at))
        exact, units = part["exact"].to_numpy(zero_copy_only=False), part["unit"].to_pylist()
        return macro(exact, part["task"].to_pylist(), units, draws) if by_task else mean(exact, units, draws)

    seen = table["seen"].to_numpy(zero_copy_only=False)
    every = share(np.ones(len(table), bool))
    return ByWording(all=every, seen=share(seen), unseen=share(~seen)) if every else None


def by_task(table: pa.Table, draws: Draws) -> dict[str, TaskAnswers]:
    """Each task, in the order of the names."""
    out = {}
    for name in sorted(set(table["task"].to_pylist())):
        part = table.filter(pa.array([t == name for t in table["task"].to_pylist()]))
        units, judged = part["unit"].to_pylist(), part.filter(part["judged"])
        scores = judged["score"].to_numpy()
        out[name] = TaskAnswers(
            prompts=len(part),
            exact=_by_wording(part.filter(part["primary"]), draws),
            score=mean(scores, judged["unit"].to_pylist(), draws) if len(judged) else None,
            ended=mean(part["ended"].to_numpy(zero_copy_only=False), units, draws),
            bits_per_byte=bits_per_byte(part, draws),
        )
    return out


def bits_per_byte(table: pa.Table, draws: Draws) -> Interval | None:
    """Of the reference answers; None if no prompt has one."""
    return ratio(table["nats"].to_numpy() / math.log(2), table["bytes"].to_numpy(), table["unit"].to_pylist(), draws)


def distinct_4(texts: Sequence[str], draws: Draws) -> Interval | None:
    """The share of different runs of four words among those of all answers (Li et al. 2016, arXiv:1510.03055).

    A run counts where it is first; the interval is that of these counts over answers. None if no answer is long enough.
    """
    known: set[tuple[str, ...]] = set()
    new, every = np.zeros(len(texts)), np.zeros(len(texts))
    for i, text in enumerate(texts):
        words = gram_words(text)
        runs = [tuple(words[at : at + 4]) for at in range(len(words) - 3)]
        before = len(known)
        known.update(runs)
        new[i], every[i] = len(known) - before, len(runs)
    return ratio_interval(new, every, draws.resamples, draws.seed)


def pass_rates(
    accepted: np.ndarray, units: Sequence[str], tasks: Sequence[str], temperature: float, draws: Draws
) -> PassRates:
    """Of sampled answers.

    Args:
        accepted: bool (prompts, samples): whether the verifier accepted an answer in full.
    """
    return PassRates(
        prompts=accepted.shape[0],
        samples=accepted.shape[1],
        temperature=temperature,
        pass_at_1=macro(accepted.mean(1), tasks, units, draws),
        pass_at_k=macro(accepted.any(1), tasks, units, draws),
    )


def paired(a: pa.Table, b: pa.Table, names: tuple[str, str], draws: Draws) -> Paired:
    """Compares the answers of B with those of A.

    Raises:
        DataError: if the tables are not of the same prompts.
    """
    a, b = same_prompts(a, b)
    better = np.sign(_difference(a, b, "score"))[a["judged"].to_numpy(zero_copy_only=False)]
    wins = mean((better + 1) / 2, a.filter(a["judged"])["unit"].to_pylist(), draws) if len(better) else None
    a, b = a.filter(a["primary"]), b.filter(b["primary"])
    found = {"a": names[0], "b": names[1], "prompts": len(better), "win_rate": wins}
    if not len(a):
        return Paired(**found, macro=None, tasks={}, p_value=None, verdict="not distinguishable")
    tasks, units = a["task"].to_pylist(), a["unit"].to_pylist()
    exact = _difference(a, b, "exact")
    total = macro(exact, tasks, units, draws)
    return Paired(
        **found,
        macro=total,
        tasks={name: mean(exact[at], np.asarray(units)[at], draws) for name, at in _tasks(tasks).items()},
        p_value=round(sign_flips(_of_units(_weighted(exact, tasks), units), draws.resamples, draws.seed), 6),
        verdict="better" if total.low > 0 else "worse" if total.high < 0 else "not distinguishable",
    )


def sentence(pair: Paired) -> str:
    """A comparison in one line."""
    if pair.macro is None or pair.win_rate is None:
        return f"{pair.b} against {pair.a}: no task has answers that are right or wrong"
    m = pair.macro
    return (
        f"{pair.b} against {pair.a}: {pair.verdict}, macro exact match {100 * m.value:+.1f} points (95 % "
        f"{100 * m.low:+.1f} to {100 * m.high:+.1f}), preferred on {pair.win_rate.value:.0%} of {pair.prompts} "
        f"prompts, p = {pair.p_value:.2g}"
    )


def _difference(a: pa.Table, b: pa.Table, column: str) -> np.ndarray:
    first, second = (t[column].to_numpy(zero_copy_only=False).astype(np.float64) for t in (a, b))
    return second - first


def _tasks(tasks: Sequence[str]) -> dict[str, np.ndarray]:
    column = np.asarray(tasks)
    return {str(name): column == name for name in np.unique(column)}


def _weighted(values: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """The values, each divided by how many prompts its task has, so that their sum is that of the tasks' means."""
    _, task, counts = np.unique(np.asarray(tasks), return_inverse=True, return_counts=True)
    return values / counts[task]


def _of_units(values: np.ndarray, units: Sequence[str]) -> np.ndarray:
    _, unit = np.unique(np.asarray(units), return_inverse=True)
    return np.bincount(unit, values)
