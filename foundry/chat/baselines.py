"""What a lookup gets: answers that need no language model. A model's score means something only beside it.

- `constant`: the one answer of the training that is right most often there.
- `naive Bayes` (the multinomial model of McCallum and Nigam 1998): for tasks with few answers, the most likely one
  given the words of the prompt.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foundry.chat.example import Example
from foundry.chat.verifiers import verify, words_of

MOST_CLASSES = 50  # different answers of a task, for naive Bayes
SMOOTHING = 0.1  # added to every count; the best of 0.02 to 1 for the topics of the default corpus
CANDIDATES, SAMPLE = 40, 400  # answers that may be the constant one, and training prompts that they are tried on


@dataclass(frozen=True)
class Baseline:
    """What one method answers to the test prompts of a task.

    Attributes:
        prompts: the places of these prompts in the list of test examples.
        answers: one for each of them.
        scores: of the verifier, in [0, 1].
    """

    task: str
    method: str
    prompts: tuple[int, ...]
    answers: tuple[str, ...]
    scores: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The share of answers that are right in full."""
        return sum(score >= 1 for score in self.scores) / len(self.scores)


def lookup(train: Sequence[Example], test: Sequence[Example]) -> list[Baseline]:
    """The baselines of every task whose answers a program checks; a pure function of the examples.

    Args:
        train: what the lookup knows.
        test: what it is asked; tasks without a verifier, or without training examples, have no baseline.
    """
    known, asked = defaultdict(list), defaultdict(list)
    for example in train:
        if example.verifier and example.answer is not None:
            known[example.task].append(example)
    for place, example in enumerate(test):
        if example.verifier and example.task in known:
            asked[example.task].append(place)
    out = []
    for task, places in asked.items():
        examples = [test[place] for place in places]
        answers = {"constant": [_constant(known[task])] * len(examples)}
        if 1 < len({e.answer for e in known[task]}) <= MOST_CLASSES:
            answers["naive Bayes"] = _naive_bayes(known[task], examples)
        for method, given in answers.items():
            scores = tuple(verify(e.verifier or "", e.arguments, a).score for e, a in zip(examples, given, strict=True))
            out.append(Baseline(task, method, tuple(places), tuple(given), scores))
    return out


def _constant(known: list[Example]) -> str:
    """Among the most frequent answers the one that is right most often; of equal ones the first in the alphabet."""
    counts = Counter(e.answer or "" for e in known)
    candidates = sorted(counts, key=lambda a: (-counts[a], a))[:CANDIDATES]
    sample = known[:: max(1, len(known) // SAMPLE)]
    right = {a: sum(verify(e.verifier or "", e.arguments, a).right for e in sample) for a in candidates}
    return min(candidates, key=lambda a: (-right[a], -counts[a], a))


def _naive_bayes(known: list[Example], asked: list[Example]) -> list[str]:
    classes = sorted({e.answer or "" for e in known})
    number = {answer: i for i, answer in enumerate(classes)}
    words: dict[str, int] = {}
    rows, columns = [], []
    for e in known:
        for word in _words(e):
            rows.append(number[e.answer or ""])
            columns.append(words.setdefault(word, len(words)))
    counts = np.zeros((len(classes), max(len(words), 1)))
    np.add.at(counts, (rows, columns), 1)
    smooth = counts + SMOOTHING
    given = np.log(smooth / smooth.sum(axis=1, keepdims=True))
    frequency = Counter(e.answer or "" for e in known)
    prior = np.array([math.log(frequency[c] / len(known)) for c in classes])
    out = []
    for e in asked:
        found = [words[w] for w in _words(e) if w in words]
        out.append(classes[int(np.argmax(prior + given[:, found].sum(axis=1)))])
    return out


def _words(example: Example) -> list[str]:
    return [word for turn in example.prompt for word in words_of(turn.content)]
