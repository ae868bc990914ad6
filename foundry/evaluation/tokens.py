"""The prediction of every token of held-out text: where the model is surprised, and whether it is calibrated."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.config import DataError
from foundry.data.tokens.documents import IGNORE, batches, windows
from foundry.evaluation.bits_per_byte import BATCH_TOKENS, Scores
from foundry.evaluation.intervals import ratio_intervals
from foundry.models import MiniLLM
from foundry.models.loss import soft_cap
from foundry.models.scoring import LOGITS, in_cache, score_documents
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

    def of_first_documents(self, n: int) -> TokenScores:
        """The tokens of the documents before document `n`."""
        at = self.document < n
        return TokenScores(self.document[at], self.seen[at], self.nats[at], self.confidence[at], self.right[at])


@torch.inference_mode()
def score_tokens(model: MiniLLM, tokens: list[np.ndarray]) -> tuple[TokenScores, Scores]:
    """Scores documents (tokens with begin and end symbol) in windows that do not overlap, in float32.

    Returns:
        The scores of the tokens, those of a document in their order; and of the documents, as
        `foundry.evaluation.bits_per_byte.score` computes them, from the same pass through the model.

    Raises:
        DataError: if a probability is not a finite number: the weights are damaged.
    """
    T, device = model.cfg.max_seq_len, model.tok_embeddings.weight.device
    parts: list[TokenScores] = []
    nats, counts = np.zeros(len(tokens)), np.zeros(len(tokens), np.int64)
    for x, y, numbers in batches(windows(tokens, T, T, reach_back=True), max(1, BATCH_TOKENS // T)):
        targets = torch.from_numpy(y).to(device)
        at = targets != IGNORE
        paid, best, right = _predictions(model, torch.from_numpy(x).to(device), targets)
        if not torch.isfinite(paid[at]).all():
            raise DataError(
                "the model's probabilities are not finite numbers: its weights are damaged, run `dvc repro train`"
            )
        row, column = np.nonzero(y != IGNORE)
        parts.append(
            TokenScores(
                document=numbers[row],
                seen=column + 1,
                nats=paid[at].cpu().double().numpy(),
                confidence=best[at].cpu().double().exp().numpy(),
                right=right[at].cpu().numpy(),
            )
        )
        np.add.at(nats, numbers, paid.masked_fill(~at, 0).cpu().double().sum(-1).numpy())
        np.add.at(counts, numbers, at.sum(-1).cpu().numpy())
    names = ("document", "seen", "nats", "confidence", "right")
    by_token = TokenScores(*(np.concatenate([getattr(p, name) for p in parts]) for name in names))
    return by_token, Scores(nats, counts)


def logits(model: MiniLLM, hidden: Tensor) -> Tensor:
    """The float32 logits (…, V) of the model's hidden states (…, C)."""
    return soft_cap(F.linear(hidden, model.head_weight), model.cfg.logit_softcap).float()


def _predictions(model: MiniLLM, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each position (B, T): nats of the target, log-probability of the most likely token, and whether both are one.

    Where nothing is scored, they mean nothing.
    """
    found, chunk = [], max(1, LOGITS // model.cfg.vocab_size)
    for tokens, targets in in_cache(x, y):
        hidden = model.hidden(tokens).flatten(0, 1)
        for h, target in zip(hidden.split(chunk), targets.flatten().split(chunk), strict=True):
            log_p = logits(model, h).log_softmax(-1)
            best, guess = log_p.max(-1)
            found.append((-log_p.gather(-1, target.clamp(min=0)[:, None])[:, 0], best, guess == target))
    nats, best, right = (torch.cat(column).view_as(y) for column in zip(*found, strict=True))
    return nats, best, right


def nats_of_few(model: MiniLLM, x: Tensor, y: Tensor) -> Tensor:
    """The nats (B, T) of targets that only few positions have: the output head leaves the others out."""
    out, chunk = torch.zeros(y.shape, device=y.device), max(1, LOGITS // model.cfg.vocab_size)
    found = []
    for tokens, targets in in_cache(x, y):
        at = targets != IGNORE
        parts = zip(model.hidden(tokens)[at].split(chunk), targets[at].split(chunk), strict=True)
        found += [F.cross_entropy(logits(model, h), target, reduction="none") for h, target in parts]
    out[y != IGNORE] = torch.cat(found)
    return out


def score_overlapping(model: MiniLLM, tokens: list[np.ndarray], known: TokenScores) -> Scores:
    """Scores the same documents in windows that overlap by half; a token may see half a context more than in others.

    A token whose window begins where it began in `known` sees the same tokens and has the same nats: only the others
    are scored.

    Args:
        known: the documents' tokens in windows that do not overlap.
    """
    T = model.cfg.max_seq_len
    order = np.argsort(known.document, kind="stable")  # documents, and in each of them its tokens in their order
    seen, paid = known.seen[order], known.nats[order]
    at = np.searchsorted(known.document[order], np.arange(len(tokens)))  # the next token of each document
    nats, counts = np.zeros(len(tokens)), np.zeros(len(tokens), np.int64)
    others = []
    for window in windows(tokens, T, max(1, T // 2), reach_back=True):
        n = len(window.tokens) - 1 - window.first_scored
        part = slice(at[window.document], at[window.document] + n)
        at[window.document] += n
        if (seen[part] == np.arange(n) + window.first_scored + 1).all():
            nats[window.document] += paid[part].sum()
            counts[window.document] += n
        else:
            others.append(window)
    rest = batches(others, max(1, BATCH_TOKENS // T))
    more, scored = score_documents(model, rest, len(tokens), nats_of=partial(nats_of_few, model))
    return Scores(nats + more, counts + scored)


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
