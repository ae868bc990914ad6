"""The evaluation of a trained model, as one value for `reports/evaluate.json`. Every number has an interval beside it.

Always in float32, so that the numbers do not depend on the machine's fast formats.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foundry.config import Config, DataError
from foundry.data.tokens.shards import Shards
from foundry.evaluation.bits_per_byte import Documents, Scores, interval, perplexity, score
from foundry.evaluation.tokens import TokenScores, calibration, position_curve, score_tokens
from foundry.models import MiniLLM, ModelFacts
from foundry.utils.files import sha256_json

LENGTHS = (0, 500, 1000, 2000, 4000, 8000, 16000)  # bytes
Seen = tuple[np.ndarray, np.ndarray]


def score_held_out(
    model: MiniLLM, facts: ModelFacts, test: Shards, documents: Documents, cfg: Config, seen: Seen | None = None
) -> tuple[dict[str, Any], Scores]:
    """Bits per byte of the test split in two protocols, overall and by what the documents are; calibration and the use of the context.

    Args:
        facts: `config.json` of the trained model.
        seen: of each document (runs of words that the training text has, runs); None: not looked for.

    Returns:
        (the report, what each document cost with stride = context).

    Raises:
        DataError: if the sum over tokens is not the sum over documents, or the model's answers are not finite.
    """
    T, resamples, seed = model.cfg.max_seq_len, cfg.evaluate.bootstrap, cfg.seed
    scores = score(model, documents.tokens, T)
    tokens = score_tokens(model, documents.tokens)
    double_entry(scores, tokens)
    overlap = score(model, documents.tokens, max(1, T // 2))

    def part(at: np.ndarray) -> dict[str, Any]:
        return {
            "bits_per_byte": interval(scores.nats[at], documents.n_bytes[at], resamples, seed),
            "documents": int(at.sum()),
            "bytes": int(documents.n_bytes[at].sum()),
        }

    every = np.ones(len(documents), bool)
    report: dict[str, Any] = {
        "test": {
            **part(every),
            "bits_per_byte_overlap": interval(overlap.nats, documents.n_bytes, resamples, seed),
            "perplexity_token": perplexity(scores.nats, scores.tokens, resamples, seed),
            "perplexity_word": perplexity(scores.nats, documents.words, resamples, seed),
            "tokens": int(scores.tokens.sum()),
            "words": int(documents.words.sum()),
            "split_documents": documents.split,
        },
        "by_source": _by(documents.sources, part),
        "by_lang": _by(documents.langs, part),
        "by_length": _by_length(documents.n_bytes, part),
        "by_position": position_curve(tokens, len(documents), T, resamples, seed),
        "calibration": calibration(tokens, len(documents), resamples, seed),
        "fingerprint": facts.fingerprint,
        "weights_sha256": facts.weights_sha256,
        "test_sha256": _test_sha256(test, documents),
    }
    if seen is not None:
        clean = seen[0] == 0
        report["test"]["not_in_training"] = part(clean) if clean.any() else None
    return report, scores


def _test_sha256(test: Shards, documents: Documents) -> str:
    """What was scored: the split's shards, and which of their documents."""
    shards = [entry.sha256 for entry in test.entries]
    return sha256_json(shards if documents.every == 1 else {"shards": shards, "every": documents.every})


def double_entry(scores: Scores, tokens: TokenScores) -> None:
    """The same nats, counted by documents and by tokens on two ways through the model.

    Raises:
        DataError: if they differ by more than float32 rounds.
    """
    one, two = scores.nats.sum(), tokens.nats.sum()
    if scores.tokens.sum() != len(tokens.nats) or not math.isclose(one, two, rel_tol=1e-5):
        raise DataError(
            f"the sum over documents is {one:.6g} nats of {scores.tokens.sum():,} tokens, that over tokens {two:.6g} of {len(tokens.nats):,}: "
            "the scoring is wrong, no number of it can be trusted"
        )


def uniform(documents: Documents, tokens: int, vocab_size: int) -> dict[str, float]:
    """Bits per byte of models that know nothing: every byte, every token equally likely."""
    return {"bytes": 8.0, "tokens": round(tokens * math.log2(vocab_size) / float(documents.n_bytes.sum()), 4)}


def _by(names: Sequence[str], part: Callable[[np.ndarray], dict[str, Any]]) -> dict[str, Any]:
    column = np.array(names)
    return {name: part(column == name) for name in dict.fromkeys(names)}


def _by_length(n_bytes: np.ndarray, part: Callable[[np.ndarray], dict[str, Any]]) -> dict[str, Any]:
    out = {}
    for least, most in zip(LENGTHS, (*LENGTHS[1:], None), strict=True):
        at = (n_bytes >= least) & (n_bytes < (most or np.inf))
        if at.any():
            out[f"{least}-{most}" if most else f"{least}-"] = part(at)
    return out
