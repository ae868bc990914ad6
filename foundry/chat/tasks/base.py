"""From questions to examples: wordings, splits, amounts and accounts are the same for all tasks.

A question is what a task asks about one thing, before it is put into words. Rules:

- A question that was made from a document is in the split of that document. One that was made from nothing is in the
  split that the hash of its key draws, whatever its wording.
- A task has eight wordings. The last two occur only in the test split, where each question is asked twice: in a wording
  of the training and in one that the training never had.
- A question is drawn by a hash of its key, so that more questions, or another order, change none that are taken.
- Every question is used, or dropped for a reason that is counted. No example teaches an answer that its own verifier
  does not accept.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from foundry.chat.example import Arguments, Example, Split, Turn
from foundry.chat.verifiers import verify
from foundry.data.splits import SPLITS, split_of

WORDINGS, SEEN_WORDINGS = 8, 6
VAL_FRACTION, TEST_FRACTION = 0.05, 0.10  # of the questions that were made from nothing
GENERATED = "generated"  # the source of such questions
Fits = Callable[[Sequence[Turn]], bool]


@dataclass(frozen=True)
class Task:
    """A kind of question.

    Attributes:
        wordings: eight templates; the last two are only in the test split.
        most: questions that training takes at most.
        held_out: questions that val and test take at most.
    """

    name: str
    wordings: tuple[str, ...]
    verifier: str | None
    most: int
    held_out: int = 150


class Origin(NamedTuple):
    """Where a question came from: its split, its document (None for none), the source and the licence."""

    split: Split
    doc_id: str | None
    source: str
    license: str


class Question(NamedTuple):
    """What is asked, before it is put into words.

    Attributes:
        key: names the question; two of the same key are the same.
        values: of the fields of the wordings.
        before: turns that come before it.
    """

    key: str
    values: dict[str, str]
    answer: str
    arguments: Arguments
    origin: Origin
    before: tuple[Turn, ...] = ()


@dataclass
class TaskAccount:
    """Where the questions of a task went: `questions` = those used + all of `dropped`.

    Attributes:
        examples: by split; a question of the test split gives two.
        dropped: by reason: `repeated` (the same question), `refuted` (the verifier of the task does not accept the
            answer), `too_long` (for the context), `surplus` (the task has enough), and what a preset adds.
    """

    questions: int = 0
    used: int = 0
    examples: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)


@dataclass
class Made:
    """The examples of a preset, and the account of each task."""

    examples: list[Example] = field(default_factory=list)
    accounts: dict[str, TaskAccount] = field(default_factory=dict)

    def account(self, task: str) -> TaskAccount:
        return self.accounts.setdefault(task, TaskAccount())

    def drop(self, task: str, reason: str, count: int = 1) -> None:
        """Counts questions that are not asked."""
        account = self.account(task)
        account.questions += count
        account.dropped[reason] += count

    def add(self, task: Task, questions: Iterable[Question], seed: int, fits: Fits) -> list[Example]:
        """Puts the questions of a task into words, as many as the task takes of each split.

        Args:
            seed: of the draws.
            fits: whether a conversation fits the context.

        Returns:
            the new examples.
        """
        made: list[Example] = []
        account = self.account(task.name)
        by_split: dict[str, dict[str, Question]] = {split: {} for split in SPLITS}
        for question in questions:
            account.questions += 1
            if question.key in by_split[question.origin.split]:
                account.dropped["repeated"] += 1
            elif task.verifier and not verify(task.verifier, question.arguments, question.answer).right:
                account.dropped["refuted"] += 1
            else:
                by_split[question.origin.split][question.key] = question
        for split, found in by_split.items():
            taken, most = 0, task.most if split == "train" else task.held_out
            for _, question in sorted((digest(seed, task.name, key), q) for key, q in found.items()):
                if taken == most:
                    account.dropped["surplus"] += 1
                    continue
                worded = [_worded(task, question, n) for n in _numbers(split, seed, task.name, question.key)]
                if not all(fits(example.messages) for example in worded):
                    account.dropped["too_long"] += 1
                    continue
                made += worded
                taken += 1
                account.used += 1
                account.examples[split] += len(worded)
        self.examples += made
        return made


def _numbers(split: str, *parts: str | int) -> list[int]:
    seen, unseen = draw(SEEN_WORDINGS, *parts, "seen"), SEEN_WORDINGS + draw(WORDINGS - SEEN_WORDINGS, *parts, "unseen")
    return [seen, unseen] if split == "test" else [seen]


def _worded(task: Task, question: Question, wording: int) -> Example:
    origin = question.origin
    asked = task.wordings[wording].format(**question.values)
    return Example(
        messages=(*question.before, Turn("user", asked), Turn("assistant", question.answer)),
        task=task.name,
        source=origin.source,
        doc_id=origin.doc_id,
        wording=wording,
        split=origin.split,
        verifier=task.verifier,
        arguments=question.arguments,
        license=origin.license,
    )


def digest(*parts: str | int) -> str:
    """16 hexadecimal digits that depend on nothing but the parts."""
    return hashlib.blake2b("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def draw(n: int, *parts: str | int) -> int:
    """A number in [0, n) that depends on nothing but the parts."""
    return int(digest(*parts), 16) % n


def made_from_nothing(key: str, source: str = GENERATED, license: str = "CC0-1.0") -> Origin:
    """The origin of a question without a document: the hash of its key draws the split."""
    return Origin(split_of(digest(key), VAL_FRACTION, TEST_FRACTION), None, source, license)
