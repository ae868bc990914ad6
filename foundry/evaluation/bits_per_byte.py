"""Bits per byte of held-out documents, with an interval.

Protocol: each document alone, from its begin symbol; every token of its text scored exactly once, the end symbol never; nats summed in
float64 and divided by the UTF-8 bytes of the raw text (law 7), so that models with other tokenizers compare. `stride = context`
is the protocol of lm-evaluation-harness (without its begin symbol counted as text); `stride = context / 2` gives every token of a long
document at least half a context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from foundry.data.documents import batches, windows
from foundry.data.shards import Shards
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Scores:
    """One entry a document, in the order of the shards."""

    nats: np.ndarray
    tokens: np.ndarray
    n_bytes: np.ndarray
    sources: list[str]


def score_split(model: MiniLLM, shards: Shards, stride: int, precision: torch.dtype = torch.float32) -> Scores:
    """Scores every document of a split."""
    documents = list(shards.documents())
    T = model.cfg.max_seq_len
    items = windows([d[0] for d in documents], T, stride)
    nats, tokens = score_documents(model, batches(items, max(1, BATCH_TOKENS // T)), len(documents), precision)
    return Scores(
        nats, tokens, np.fromiter((d[1] for d in documents), np.int64, len(documents)), [d[2] for d in documents]
    )


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray) -> float:
    return float(nats.sum() / math.log(2) / n_bytes.sum())


def interval(nats: np.ndarray, n_bytes: np.ndarray, resamples: int, seed: int) -> dict[str, float]:
    """Bits per byte with its 95 % bootstrap percentile interval over documents (Efron 1979): {value, low, high}."""
    rng = np.random.default_rng(seed)
    n = len(nats)
    draws = np.empty(resamples)
    for i in range(resamples):
        picked = rng.integers(0, n, n)
        draws[i] = bits_per_byte(nats[picked], n_bytes[picked])
    low, high = np.percentile(draws, (2.5, 97.5))
    return {k: round(float(v), 4) for k, v in (("value", bits_per_byte(nats, n_bytes)), ("low", low), ("high", high))}


def summarize(scores: Scores, resamples: int, seed: int) -> dict:
    """The numbers of a split: overall and by source."""
    by_source = {}
    for source in dict.fromkeys(scores.sources):
        at = np.fromiter((s == source for s in scores.sources), bool, len(scores.sources))
        by_source[source] = {
            "bits_per_byte": interval(scores.nats[at], scores.n_bytes[at], resamples, seed),
            "documents": int(at.sum()),
            "bytes": int(scores.n_bytes[at].sum()),
        }
    return {
        "bits_per_byte": interval(scores.nats, scores.n_bytes, resamples, seed),
        "perplexity_token": round(math.exp(scores.nats.sum() / scores.tokens.sum()), 3),
        "documents": len(scores.nats),
        "tokens": int(scores.tokens.sum()),
        "bytes": int(scores.n_bytes.sum()),
        "by_source": by_source,
    }
