"""The prediction of every token of held-out text: where the model is surprised, and whether it is calibrated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from foundry.config import DataError
from foundry.data.tokens.documents import IGNORE, batches, windows
from foundry.evaluation.intervals import ratio_intervals
from foundry.models import MiniLLM
from foundry.models.scoring import LOGITS
from foundry.utils.bootstrap import Interval, bootstrap, percentiles_95
from foundry.utils.evaluation_report import Calibration, CalibrationBin, PositionScore

BINS = 10


@dataclass(frozen=True)
class TokenScores:
    """One entry per scored token.

    Attributes:
        document: int64, number of its document.
        seen: int64, tokens before it in its window, the begin symbol included.
        nats: float64, negative log likelihood.
        confidence: float64, probability of the most likely token.
        right: bool, whether it is the most likely token.
    """

    document: np.ndarray
    seen: np.ndarray
    nats: np.ndarray
    confidence: np.ndarray
    right: np.ndarray


@torch.inference_mode()
def score_tokens(model: MiniLLM, tokens: list[np.ndarray]) -> TokenScores:
    """Scores documents (tokens with begin and end symbol) in windows that do not overlap, in float32.

    Raises:
        DataError: if a probability is not a finite number: the weights are damaged.
    """
    T, device = model.cfg.max_seq_len, model.tok_embeddings.weight.device
    rows = max(1, min(4096, LOGITS // model.cfg.vocab_size) // T)
    parts: list[TokenScores] = []
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
            TokenScores(
                document=numbers[row],
                seen=column + 1,
                nats=nats.cpu().double().numpy(),
                confidence=best.cpu().double().exp().numpy(),
                right=(guess == target).cpu().numpy(),
            )
        )
    names = ("document", "seen", "nats", "confidence", "right")
    return TokenScores(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))


def position_curve(scores: TokenScores, documents: int, context: int, resamples: int, seed: int) -> list[PositionScore]:
    """Nats per token by the tokens that were seen before: 1, 2 to 3, 4 to 7 and so on, up to the context."""
    edges = [1]
    while edges[-1] * 2 <= context:
        edges.append(edges[-1] * 2)
    bucket = np.searchsorted(edges, scores.seen, side="right") - 1
    nats, counts = (_sums(scores.document, bucket, w, documents, len(edges)) for w in (scores.nats, None))
    found = ratio_intervals(nats, counts, resamples, seed)
    return [
        PositionScore(seen=edge, tokens=int(counts[:, k].sum()), **dict(interval))
        for k, (edge, interval) in enumerate(zip(edges, found, strict=True))
        if interval
    ]


def calibration(scores: TokenScores, documents: int, resamples: int, seed: int) -> Calibration:
    """Whether predictions of probability 0.7 are right in 70 of 100 cases (Guo et al. 2017).

    Returns:
        The expected calibration error over ten equal bins of the most likely token's probability, and the
        reliability curve.
    """
    bucket = np.minimum((scores.confidence * BINS).astype(np.int64), BINS - 1)
    sure, right, counts = (
        _sums(scores.document, bucket, w, documents, BINS)
        for w in (scores.confidence, scores.right.astype(np.float64), None)
    )
    rows = [
        CalibrationBin(
            confidence=round(float(sure[:, k].sum() / counts[:, k].sum()), 4),
            accuracy=accuracy,
            tokens=int(counts[:, k].sum()),
        )
        for k, accuracy in enumerate(ratio_intervals(right, counts, resamples, seed))
        if accuracy
    ]
    gap = sure - right

    def expected_error(drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=documents).astype(np.float64)
        return np.abs(times @ gap).sum() / max((times @ counts).sum(), 1.0)

    low, high = percentiles_95(bootstrap(expected_error, documents, resamples, seed))
    value = np.abs(gap.sum(0)).sum() / counts.sum()
    return Calibration(expected_error=Interval.rounded(value, low, high, 4), rows=rows)


def _sums(
    document: np.ndarray, bucket: np.ndarray, weights: np.ndarray | None, documents: int, buckets: int
) -> np.ndarray:
    """float64 (documents, buckets): sums of the weights of the entries; without weights, how many entries there are."""
    flat = np.bincount(document * buckets + bucket, weights, documents * buckets)
    return flat.astype(np.float64).reshape(documents, buckets)
