"""Which of the evaluation's texts stand in the training text: by runs of 13 words (Brown et al. 2020, appendix C).

A word is a word in lower case without punctuation, or a character of a script without spaces, as the clean stage counts them. The training
text is read once, and looked up in the runs of the evaluation's texts; so memory follows the evaluation, not the corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from foundry.config import Runtime
from foundry.data.text.grams import gram_hashes
from foundry.data.text.words import gram_words
from foundry.evaluation.intervals import Interval, ratio_interval
from foundry.utils.executor import map_tasks


def overlap(
    groups: Mapping[str, Sequence[str]],
    n: int,
    parts: Sequence[Any],
    read: Callable[[Any], Iterable[str]],
    runtime: Runtime,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """How many runs of `n` words of each text the training text has.

    Args:
        groups: {name: texts}; a text shorter than `n` words has no run.
        parts, read: parts of the training text, and what gives the documents of one; parts are read side by side
            (`runtime.workers`).

    Returns:
        {name: (runs that were seen, runs)}, int64 (texts,) each.
    """
    hashes = {name: [_runs(text, n) for text in texts] for name, texts in groups.items()}
    flat = [h for texts in hashes.values() for h in texts]
    known = np.unique(np.concatenate(flat)) if flat else np.empty(0, np.uint64)
    seen = np.zeros(len(known), bool)
    if len(known):
        for here in map_tasks(_seen, (known, n, read), parts, runtime):
            seen |= here
    return {
        name: (
            np.array([int(seen[np.searchsorted(known, h)].sum()) for h in texts], np.int64),
            np.array([len(h) for h in texts], np.int64),
        )
        for name, texts in hashes.items()
    }


def _seen(context: tuple[np.ndarray, int, Callable[[Any], Iterable[str]]], part: Any) -> np.ndarray:
    """bool (known,): which of the known runs the documents of a part have."""
    known, n, read = context
    seen = np.zeros(len(known), bool)
    for text in read(part):
        runs = _runs(text, n)
        at = np.minimum(np.searchsorted(known, runs), len(known) - 1)
        seen[at[known[at] == runs]] = True
    return seen


def _runs(text: str, n: int) -> np.ndarray:
    words = gram_words(text)
    return gram_hashes(words, n) if len(words) >= n else np.empty(0, np.uint64)


def summary(found: tuple[np.ndarray, np.ndarray], resamples: int, seed: int) -> dict[str, Interval | int | None]:
    """{texts: share that has a run of the training text, runs: share of all runs, looked_at: texts long enough to have one}."""
    seen, runs = found
    has = runs > 0
    return {
        "texts": ratio_interval((seen > 0) & has, has, resamples, seed) if has.any() else None,
        "runs": ratio_interval(seen, runs, resamples, seed) if has.any() else None,
        "looked_at": int(has.sum()),
    }
