"""What the model says of every token of held-out text: where it is surprised, and whether it knows when it is sure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from foundry.config import DataError
from foundry.data.tokens.documents import batches, windows
from foundry.evaluation.intervals import ratio_intervals
from foundry.models import MiniLLM
from foundry.models.scoring import LOGITS
from foundry.utils.bootstrap import bootstrap, percentiles_95
from foundry.utils.targets import IGNORE

BINS = 10


@dataclass(frozen=True)
class TokenScores:
    """One entry a scored token."""

    document: np.ndarray  # int64
    seen: np.ndarray  # int64: tokens before it in its window, the begin symbol included
    nats: np.ndarray  # float64
    confidence: np.ndarray  # float64: probability of the likeliest token
    right: np.ndarray  # bool: it was the likeliest


@torch.inference_mode()
def score_tokens(model: MiniLLM, tokens: list[np.ndarray]) -> TokenScores:
    """Scores documents (tokens with begin and end symbol) in windows side by side, in float32.

    Raises:
        DataError: if the model answers with numbers that are not finite: its weights are damaged.
    """
    T, device = model.cfg.max_seq_len, model.tok_embeddings.weight.device
    rows = max(1, min(4096, LOGITS // model.cfg.vocab_size) // T)
    parts: list[tuple[np.ndarray, ...]] = []
    for x, y, numbers in batches(windows(tokens, T, T, reach_back=True), rows):
        log_p = model(torch.from_numpy(x).to(device))[0].float().log_softmax(-1)
        row, column = np.nonzero(y != IGNORE)
        at, target = log_p[row, column], torch.from_numpy(y[row, column]).to(device)
        best, guess = at.max(-1)
        nats = -at.gather(-1, target[:, None])[:, 0]
        if not torch.isfinite(nats).all():
            raise DataError(
                "the model's probabilities are not finite numbers: its weights are damaged, run `dvc repro train`"
            )
        parts.append(
            (numbers[row], column + 1, nats.cpu().double().numpy(), best.cpu().double().exp().numpy(), (guess == target).cpu().numpy())
        )  # fmt: skip
    return TokenScores(*(np.concatenate(p) for p in zip(*parts, strict=True)))


def position_curve(scores: TokenScores, documents: int, context: int, resamples: int, seed: int) -> list[dict]:
    """Nats per token by how much of the context was filled: rows {seen, tokens, value, low, high}, doubling."""
    edges = [1]
    while edges[-1] * 2 <= context:
        edges.append(edges[-1] * 2)
    bucket = np.searchsorted(edges, scores.seen, side="right") - 1
    nats, counts = (_sums(scores.document, bucket, w, documents, len(edges)) for w in (scores.nats, None))
    found = ratio_intervals(nats, counts, resamples, seed)
    return [
        {"seen": e, "tokens": int(counts[:, k].sum()), **v}
        for k, (e, v) in enumerate(zip(edges, found, strict=True))
        if v
    ]


def calibration(scores: TokenScores, documents: int, resamples: int, seed: int) -> dict:
    """Whether a token given 70 % is right in 70 of 100 cases (Guo et al. 2017).

    Returns:
        {expected_error: {value, low, high}, rows: [{confidence, accuracy: {value, low, high}, tokens}]}: the expected calibration error over ten equal
        bins of the likeliest token's probability, and the reliability curve.
    """
    bucket = np.minimum((scores.confidence * BINS).astype(np.int64), BINS - 1)
    sure, right, counts = (
        _sums(scores.document, bucket, w, documents, BINS)
        for w in (scores.confidence, scores.right.astype(np.float64), None)
    )
    accuracy = ratio_intervals(right, counts, resamples, seed)
    rows = [
        {"confidence": round(float(sure[:, k].sum() / counts[:, k].sum()), 4), "accuracy": a, "tokens": int(counts[:, k].sum())}
        for k, a in enumerate(accuracy)
        if a
    ]  # fmt: skip
    gap = sure - right

    def expected_error(drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=documents).astype(np.float64)
        return np.abs(times @ gap).sum() / max((times @ counts).sum(), 1.0)

    low, high = percentiles_95(bootstrap(expected_error, documents, resamples, seed))
    value = np.abs(gap.sum(0)).sum() / counts.sum()
    error = {k: round(float(v), 4) for k, v in (("value", value), ("low", low), ("high", high))}
    return {"expected_error": error, "rows": rows}


def _sums(
    document: np.ndarray, bucket: np.ndarray, what: np.ndarray | None, documents: int, buckets: int
) -> np.ndarray:
    """float64 (documents, buckets); without `what` the entries are counted."""
    flat = np.bincount(document * buckets + bucket, what, documents * buckets)
    return flat.astype(np.float64).reshape(documents, buckets)
