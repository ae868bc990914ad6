"""The schemas of `reports/preferences.json`, `reports/chat_reward.json` and `reports/chat_dpo.json`.

Fields are in the order of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

from foundry.chat.measures import Draws, mean
from foundry.chat.pairs import encode_pairs
from foundry.chat.preferences import Gathered
from foundry.models.facts import SkipDecision
from foundry.tokenizers import Tokenizer
from foundry.utils.bootstrap import Interval
from foundry.utils.files import write_json
from foundry.utils.records import Record

RESAMPLES = 2000  # of the bootstrap


class SampledTask(Record):
    """Where the sampled prompts of a task went: `prompts` = `pairs` + all of `dropped`.

    Attributes:
        passed: share of the answers that the verifier accepts in full.
    """

    prompts: int
    pairs: int
    dropped: dict[str, int]
    answers: int
    passed: float


class PairFile(Record):
    """Where the records of a user's file went: `records` = `kept` + all of `quarantined`."""

    file: str
    format: str
    records: int
    kept: int
    quarantined: dict[str, int]


class PreferencesReport(Record):
    """The pairs of better and worse answers.

    Attributes:
        parent_sha256: weights that drew the sampled answers; None if none were drawn.
        train, val: pairs of each split.
        by_source: pairs of each source.
        dropped: pairs of users, by reason.
        longer_wins: share of the pairs whose longer answer is the chosen one (ties: one half). Far from one half, a
            model learns length first.
        chosen_tokens, rejected_tokens: mean lengths of the answers.
    """

    parent_sha256: str | None
    train: int
    val: int
    by_source: dict[str, int]
    tasks: dict[str, SampledTask]
    files: list[PairFile]
    dropped: dict[str, int]
    longer_wins: Interval
    chosen_tokens: Interval
    rejected_tokens: Interval

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump())


class PairTrainingReport(Record):
    """A training on pairs: DPO, or a reward model.

    Attributes:
        pairs, held_out: of the training and of the validation; too_long: pairs that do not fit the context.
        epochs: how often the pairs were read.
        before, after: metrics of the validation before the first and after the last step.
        accuracy: share of the held-out pairs whose chosen side is ahead, with its interval over prompts.
        longer_wins: the same of the rule "the longer one is better".
        beats_length: whether the accuracy is better than that rule and than chance: the interval of the difference
            from each pair's rule, and of the accuracy from one half, are above 0.
    """

    kind: Literal["dpo", "reward"]
    method: Literal["full", "lora"]
    params: int
    trained_params: int
    steps: int
    tokens: int
    pairs: int
    held_out: int
    too_long: int
    epochs: float
    fingerprint: str
    tokenizer_sha256: str
    index_sha256: str
    template_sha256: str
    parent_sha256: str
    base_sha256: str
    skipped_batches: list[SkipDecision] | None = None
    before: dict[str, float]
    after: dict[str, float]
    accuracy: Interval
    longer_wins: Interval
    beats_length: bool

    def write(self, path: str | Path) -> None:
        write_json(path, self.model_dump(exclude_none=True))


def preferences_report(found: Gathered, tokenizer: Tokenizer, parent: str | None, seed: int) -> PreferencesReport:
    """The report of all pairs; intervals are over prompts."""
    encoded, _ = encode_pairs(tokenizer, found.pairs, 2**31)
    units, draws = [p.prompt for p in encoded], Draws(RESAMPLES, seed)
    splits = Counter(p.split for p in found.pairs)

    def over(values: Iterable[float]) -> Interval:
        return mean(np.array(list(values), np.float64), units, draws)

    return PreferencesReport(
        parent_sha256=parent,
        train=splits["train"],
        val=splits["val"],
        by_source=dict(sorted(Counter(p.source for p in found.pairs).items())),
        tasks={
            name: SampledTask(
                prompts=t.prompts,
                pairs=t.pairs,
                dropped=dict(sorted(t.dropped.items())),
                answers=t.answers,
                passed=round(t.passed / max(1, t.answers), 4),
            )
            for name, t in sorted(found.tasks.items())
        },
        files=[
            PairFile(
                file=a.file,
                format=a.format,
                records=a.records,
                kept=a.kept,
                quarantined=dict(sorted(a.quarantined.items())),
            )
            for a in found.files
        ],
        dropped=dict(sorted((+found.dropped).items())),
        longer_wins=over(p.longer_wins for p in encoded),
        chosen_tokens=over(p.chosen.length for p in encoded),
        rejected_tokens=over(p.rejected.length for p in encoded),
    )
