"""How well a model predicts held-out text: overall, by group of documents, by position in the context; calibration.

Always in float32, so that the numbers do not depend on the machine's fast formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foundry.config import Config, DataError
from foundry.data.tokens.shards import Shards
from foundry.evaluation.bits_per_byte import Scores, bits_per_byte_interval, perplexity, score
from foundry.evaluation.contamination import SharedRuns
from foundry.evaluation.documents import Documents
from foundry.evaluation.tokens import (
    TokenScores,
    calibration,
    position_curve,
    score_overlapping,
    score_tokens,
)
from foundry.models import MiniLLM
from foundry.utils.evaluation_report import Calibration, PartScore, PositionScore, SplitScore, UniformModels
from foundry.utils.files import sha256_json

SCORED_TWICE = 4096  # tokens, those of the first documents, which go through the model on two ways
LENGTHS = (0, 500, 1000, 2000, 4000, 8000, 16000)  # bytes


@dataclass(frozen=True)
class HeldOutScores:
    """What `foundry.utils.evaluation_report.EvaluationReport` has under the same names, and the loss on each document.

    Attributes:
        by_document: with windows that do not overlap.
    """

    test: SplitScore
    by_source: dict[str, PartScore]
    by_lang: dict[str, PartScore]
    by_length: dict[str, PartScore]
    by_position: list[PositionScore]
    calibration: Calibration
    by_document: Scores


def score_held_out(
    model: MiniLLM, documents: Documents, cfg: Config, in_training: SharedRuns | None = None
) -> HeldOutScores:
    """Scores documents by two protocols: windows that do not overlap, and windows that overlap by half.

    Args:
        in_training: the runs of words of the documents that are in the training text; None if nobody looked for them.

    Raises:
        DataError: if the sum over tokens is not the sum over documents, or the model's probabilities are not finite.
    """
    T, resamples, seed = model.cfg.max_seq_len, cfg.evaluate.bootstrap, cfg.seed
    tokens, scores = score_tokens(model, documents.tokens)
    check_sums(scores, tokens)
    few = int(np.searchsorted(scores.tokens.cumsum(), SCORED_TWICE)) + 1
    check_sums(score(model, documents.tokens[:few], T), tokens.of_first_documents(few))
    overlap = score_overlapping(model, documents.tokens, tokens)

    def part(at: np.ndarray) -> PartScore:
        """The documents of a mask."""
        return PartScore(
            bits_per_byte=bits_per_byte_interval(scores.nats[at], documents.n_bytes[at], resamples, seed),
            documents=int(at.sum()),
            bytes=int(documents.n_bytes[at].sum()),
        )

    looked_for = {}
    if in_training is not None:
        clean = in_training.seen == 0
        looked_for["not_in_training"] = part(clean) if clean.any() else None
    test = SplitScore(
        **dict(part(np.ones(len(documents), bool))),
        bits_per_byte_overlap=bits_per_byte_interval(overlap.nats, documents.n_bytes, resamples, seed),
        perplexity_token=perplexity(scores.nats, scores.tokens, resamples, seed),
        perplexity_word=perplexity(scores.nats, documents.words, resamples, seed),
        tokens=int(scores.tokens.sum()),
        words=int(documents.words.sum()),
        split_documents=documents.split,
        **looked_for,
    )
    return HeldOutScores(
        test=test,
        by_source=_by_name(documents.sources, part),
        by_lang=_by_name(documents.langs, part),
        by_length=_by_length(documents.n_bytes, part),
        by_position=position_curve(tokens, len(documents), T, resamples, seed),
        calibration=calibration(tokens, len(documents), resamples, seed),
        by_document=scores,
    )


def scored_text_sha256(test: Shards, documents: Documents) -> str:
    """The identity of the text that was scored: the split's shards, and which of their documents."""
    shards = [entry.sha256 for entry in test.entries]
    return sha256_json(shards if documents.every == 1 else {"shards": shards, "every": documents.every})


def check_sums(scores: Scores, tokens: TokenScores) -> None:
    """Double entry: the same nats, summed by documents and by tokens, on different ways.

    Raises:
        DataError: if they differ by more than the rounding of float32.
    """
    one, two = scores.nats.sum(), tokens.nats.sum()
    if scores.tokens.sum() != len(tokens.nats) or not math.isclose(one, two, rel_tol=1e-5):
        raise DataError(
            f"the sum over documents is {one:.6g} nats of {scores.tokens.sum():,} tokens, the sum over tokens is "
            f"{two:.6g} nats of {len(tokens.nats):,}: the scoring is wrong, and no number of it can be trusted. "
            "Please report this as a bug of foundry/models/scoring.py"
        )


def uniform(documents: Documents, tokens: int, vocab_size: int) -> UniformModels:
    """Bits per byte of models that know nothing.

    Args:
        tokens: of the documents, as the model's tokenizer counts them.
    """
    per_token = round(tokens * math.log2(vocab_size) / float(documents.n_bytes.sum()), 4)
    return UniformModels(bytes=8.0, tokens=per_token)


def _by_name(names: Sequence[str], part: Callable[[np.ndarray], PartScore]) -> dict[str, PartScore]:
    column = np.array(names)
    return {name: part(column == name) for name in dict.fromkeys(names)}


def _by_length(n_bytes: np.ndarray, part: Callable[[np.ndarray], PartScore]) -> dict[str, PartScore]:
    out = {}
    for least, most in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        at = (n_bytes >= least) & (n_bytes < (most or np.inf))
        if at.any():
            out[f"{least}-{most}" if most else f"{least}-"] = part(at)
    return out
