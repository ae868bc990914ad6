"""The schema of `reports/chat.json` and `reports/align.json`: how well models answer, and whether tuning was worth it.

The chat_evaluate and align_evaluate stages write them; the export, the registration and the HTML page read them. Every
measured number has an interval beside it. Fields are in the order of the file. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from foundry.config import FoundryError
from foundry.utils.bootstrap import Interval
from foundry.utils.files import write_json
from foundry.utils.records import Record

Verdict = Literal["better", "worse", "not distinguishable"]


class ByWording(Record):
    """A share over all prompts, and over those whose wording the training had or had not; None where there is none."""

    all: Interval
    seen: Interval | None
    unseen: Interval | None


class TaskAnswers(Record):
    """The answers to one task.

    Attributes:
        exact: share that the verifier accepts in full; None for a task whose answers are not right or wrong: without a
            verifier, or with one that grades likeness or form.
        score: mean score of the verifier, in [0, 1]; None without one.
        ended: share that the model ended by itself.
        bits_per_byte: of the reference answers.
    """

    prompts: int
    exact: ByWording | None
    score: Interval | None
    ended: Interval
    bits_per_byte: Interval | None


class Forgetting(Record):
    """The test text of pre-training, scored again.

    Attributes:
        bits_per_byte: of this model.
        difference: of this model minus that of the base model, paired by document: positive where it forgot.
    """

    bits_per_byte: float
    difference: Interval
    documents: int


class PassRates(Record):
    """Sampled answers: the chance that one of k is accepted in full (Chen et al. 2021, arXiv:2107.03374).

    Attributes:
        samples: answers to each prompt: the k of `pass_at_k`.
    """

    prompts: int
    samples: int
    temperature: float
    pass_at_1: Interval
    pass_at_k: Interval


class ModelAnswers(Record):
    """One model.

    Attributes:
        macro: mean over tasks of the share of answers accepted in full: the primary metric; None without such a task.
        bits_per_byte: of the reference answers of all tasks; bytes of their text, the end symbol is not counted.
        ended: share of greedy answers that the model ended by itself.
        distinct_4: share of different runs of four words among all runs of its answers; None if none is long enough.
        tokens: mean length of an answer.
        foreign: share of answers that are, word for word, a training answer of another task: what was repeated until it
            leaked.
        forgetting: None for the base model, which forgot nothing.
        kl: nats per token between this model and its parent, on this model's own greedy answers; None without a parent.
        passed: None for the base model, and if no answers were sampled.
    """

    weights_sha256: str
    parent: str | None
    macro: ByWording | None
    tasks: dict[str, TaskAnswers]
    bits_per_byte: Interval | None
    ended: Interval
    distinct_4: Interval | None
    tokens: Interval
    foreign: Interval
    forgetting: Forgetting | None
    kl: Interval | None
    passed: PassRates | None


class Paired(Record):
    """Model `b` against model `a` on the same prompts.

    Attributes:
        prompts: whose answers a verifier judged.
        macro: difference of the primary metric; None without a task whose answers are right or wrong.
        tasks: difference of the share of answers accepted in full, by task.
        win_rate: share of prompts whose verifier prefers `b`; a tie counts half.
        p_value: two-sided, of the sign-flip test of the scores' differences.
        verdict: "better" if the whole interval of `macro` is above zero, "worse" if it is below.
    """

    a: str
    b: str
    prompts: int
    macro: Interval | None
    tasks: dict[str, Interval]
    win_rate: Interval | None
    p_value: float | None
    verdict: Verdict


class ChatReport(Record):
    """The content of the file.

    Attributes:
        prompts: of the test split that were answered.
        prompts_sha256: over their texts.
        models: by name: base, sft, dpo, rl.
        lookups: {task: {lookup: share of its answers accepted in full}}: what a lookup without a model gets.
    """

    prompts: int
    prompts_sha256: str
    data_sha256: str
    template_sha256: str
    verifier_version: int
    models: dict[str, ModelAnswers]
    lookups: dict[str, dict[str, Interval]]
    pairs: list[Paired]

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump())

    def pair(self, a: str, b: str) -> Paired | None:
        """The comparison of two of the models; None if it was not made."""
        return next((p for p in self.pairs if (p.a, p.b) == (a, b)), None)


def read_chat_report(path: str | Path, error: Callable[[str], Exception] = FoundryError) -> ChatReport:
    """Reads `reports/chat.json` or `reports/align.json`.

    Raises:
        error: if the file is missing, is not readable JSON, or does not follow the schema.
    """
    return ChatReport.read(path, "the evaluation of the answers; run `make chat` or `make align`", error)
