"""How much of the evaluation's texts is in the training text: by runs of 13 words (Brown et al. 2020, appendix C).

A word is a word in lower case without punctuation, or a character of a script without spaces, as the clean stage counts
them. The training text is read once and looked up in the runs of the evaluation's texts, so memory follows the
evaluation, not the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any

import numpy as np

from foundry.config import Runtime
from foundry.data.text.grams import gram_hashes
from foundry.data.text.words import gram_words
from foundry.evaluation.intervals import ratio_interval
from foundry.utils.evaluation_report import TrainingOverlap
from foundry.utils.executor import map_tasks

TEXTS = 256  # of the training text that are looked up at a time


@dataclass(frozen=True)
class SharedRuns:
    """One entry per text, int64: its runs of words that are in the training text, and all its runs."""

    seen: np.ndarray
    runs: np.ndarray


def shared_runs(
    groups: Mapping[str, Sequence[str]],
    n: int,
    parts: Sequence[Any],
    read: Callable[[Any], Iterable[str]],
    runtime: Runtime,
) -> dict[str, SharedRuns]:
    """Looks for the runs of `n` words of some texts in the training text.

    Args:
        groups: {name: texts}; a text of fewer than `n` words has no run.
        parts: of the training text; they are read in parallel (`runtime.workers`).
        read: returns the documents of a part.

    Returns:
        {name: the runs of its texts}.
    """
    hashes = {name: [_runs(text, n) for text in texts] for name, texts in groups.items()}
    flat = [h for texts in hashes.values() for h in texts]
    known = np.unique(np.concatenate(flat)) if flat else np.empty(0, np.uint64)
    seen = np.zeros(len(known), bool)
    if len(known):
        for in_part in map_tasks(_seen, (known, n, read), parts, runtime):
            seen |= in_part
    return {
        name: SharedRuns(
            seen=np.array([int(seen[np.searchsorted(known, h)].sum()) for h in texts], np.int64),
            runs=np.array([len(h) for h in texts], np.int64),
        )
        for name, texts in hashes.items()
    }


def _seen(context: tuple[np.ndarray, int, Callable[[Any], Iterable[str]]], part: Any) -> np.ndarray:
    """bool (known,): which of the known runs are in the documents of a part."""
    known, n, read = context
    seen = np.zeros(len(known), bool)
    texts = iter(read(part))
    while some := list(islice(texts, TEXTS)):
        runs = _runs_of_all(some, n)
        at = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        seen[at[known[at] == runs]] = True
    return seen


def _runs_of_all(texts: list[str], n: int) -> np.ndarray:
    """The runs of all texts together: those of the joined texts but for what begins in one and ends in another."""
    words = [gram_words(text) for text in texts]
    ends = np.cumsum([len(w) for w in words])
    first = np.arange(ends[-1] - n + 1)
    if not len(first):
        return np.empty(0, np.uint64)
    runs = gram_hashes(list(chain.from_iterable(words)), n)
    return runs[first + n <= ends[np.searchsorted(ends, first, side="right")]]


def _runs(text: str, n: int) -> np.ndarray:
    words = gram_words(text)
    return gram_hashes(words, n) if len(words) >= n else np.empty(0, np.uint64)


def training_overlap(found: SharedRuns, resamples: int, seed: int) -> TrainingOverlap:
    """Shares, with intervals over the texts, for the report."""
    has_runs = found.runs > 0
    if not has_runs.any():
        return TrainingOverlap(texts=None, runs=None, looked_at=0)
    return TrainingOverlap(
        texts=ratio_interval((found.seen > 0) & has_runs, has_runs, resamples, seed),
        runs=ratio_interval(found.seen, found.runs, resamples, seed),
        looked_at=int(has_runs.sum()),
    )
