"""The schema of `reports/evaluate.json`, which the evaluate stage writes.

The export, the registration and the HTML report read it. Every measured number has an interval beside it. Fields are in
the order of the file. A field with a default is absent from the file if it was not measured. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from foundry.config import FoundryError
from foundry.utils.bootstrap import Interval
from foundry.utils.files import write_json
from foundry.utils.records import Record

PPMD = "ppmd_order_8"  # the strongest compressor of `baselines` on text: the line that a model has to pass


class PartScore(Record):
    """Bits per byte of some of the test documents; `bytes` are the UTF-8 bytes of their raw text."""

    bits_per_byte: Interval
    documents: int
    bytes: int


class SplitScore(PartScore):
    """All test documents that were scored.

    Attributes:
        bits_per_byte_overlap: with windows that overlap by half.
        words: runs of characters between white space.
        split_documents: documents of the test split; `evaluate.test_bytes` may take fewer.
        not_in_training: the documents without a run of words that is in the training text; None if there is no such
            document.
    """

    bits_per_byte_overlap: Interval
    perplexity_token: Interval
    perplexity_word: Interval
    tokens: int
    words: int
    split_documents: int
    not_in_training: PartScore | None = None


class PositionScore(Record):
    """Nats per token (value, with its interval) of the tokens that have `seen` to 2 * `seen` - 1 tokens before them."""

    seen: int
    tokens: int
    value: float
    low: float
    high: float


class CalibrationBin(Record):
    """Tokens whose most likely prediction has about the same probability.

    Attributes:
        confidence: mean of that probability.
        accuracy: how often the prediction was right.
    """

    confidence: float
    accuracy: Interval
    tokens: int


class Calibration(Record):
    """Expected calibration error and the reliability curve."""

    expected_error: Interval
    rows: list[CalibrationBin]


class TrainingOverlap(Record):
    """Runs of words that some texts share with the training text.

    Attributes:
        texts: share of the texts that have such a run; None if no text is long enough for one.
        runs: share of such runs among all runs.
        looked_at: texts that are long enough.
    """

    texts: Interval | None
    runs: Interval | None
    looked_at: int


class Contamination(Record):
    """`TrainingOverlap` of the test documents, by runs of `ngram` words."""

    ngram: int
    texts: Interval | None
    runs: Interval | None
    looked_at: int


class TaskScore(Record):
    """Multiple-choice questions: share of right answers (score, with its interval).

    Attributes:
        acc_norm: share of right answers when probabilities are compared per character.
        chance: expected share of right guesses.
        n: questions.
    """

    score: float
    low: float
    high: float
    acc_norm: Interval
    chance: float
    n: int
    contamination: TrainingOverlap | None = None


class SampleVariety(Record):
    """How varied the continuations of the prompts are.

    Attributes:
        distinct_1, distinct_2, distinct_3: share of different n-grams of words among all of them (Li et al. 2016); None
            if no text is long enough.
        repeated_4: share of 4-grams that occurred earlier in the same text.
        recited: share of runs of `Contamination.ngram` words that are in the training text.
    """

    distinct_1: Interval | None
    distinct_2: Interval | None
    distinct_3: Interval | None
    repeated_4: Interval | None
    recited: Interval | None = None


class LeakProbe(Record):
    """What was changed without any effect on the logits that must not depend on it."""

    later_tokens: str
    other_documents: str


class CompressedSize(Record):
    """Bits per byte of the test text: compressed by itself, and after the training text."""

    alone: float
    given_train: float


class UniformModels(Record):
    """Bits per byte of models that know nothing: each byte, each token equally likely."""

    bytes: float
    tokens: float


class HarnessMetric(Record):
    """A metric of lm-evaluation-harness; `stderr` is None where the harness computes none."""

    value: float
    stderr: float | None


class HarnessScore(Record):
    """A task of lm-evaluation-harness: the number of examples, and each metric under its own name."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, HarnessMetric]

    n: int | None

    @property
    def metrics(self) -> dict[str, HarnessMetric]:
        return self.__pydantic_extra__


class EvaluationReport(Record):
    """The content of the file.

    Attributes:
        by_length: keyed by the range of their bytes, for example `500-1000`.
        fingerprint, weights_sha256: of the evaluated model.
        test_sha256: of the test text that was scored.
        samples: keyed by how the text was generated: greedy, sampled.
        baselines: keyed by the compressor.
    """

    test: SplitScore
    by_source: dict[str, PartScore]
    by_lang: dict[str, PartScore]
    by_length: dict[str, PartScore]
    by_position: list[PositionScore]
    calibration: Calibration
    fingerprint: str
    weights_sha256: str
    test_sha256: str
    contamination: Contamination | None = None
    tasks: dict[str, TaskScore]
    samples: dict[str, SampleVariety]
    leaks: LeakProbe
    baselines: dict[str, CompressedSize] | None = None
    uniform: UniformModels | None = None
    harness: dict[str, HarnessScore] | None = None

    @property
    def ppmd(self) -> float | None:
        """Bits per byte of PPMd after the training text; None if the baselines were not measured."""
        found = (self.baselines or {}).get(PPMD)
        return found.given_train if found else None

    def to_dict(self) -> dict[str, Any]:
        """The JSON value, without what was not measured."""
        return self.model_dump(exclude_unset=True)

    def write(self, path: str | Path) -> None:
        write_json(path, self.to_dict())


def read_evaluation(path: str | Path, error: Callable[[str], Exception] = FoundryError) -> EvaluationReport:
    """Reads `reports/evaluate.json`.

    Raises:
        error: if the file is missing, is not readable JSON, or does not follow the schema.
    """
    return EvaluationReport.read(path, "the evaluation; run `dvc repro evaluate`", error)
