"""Bits per byte of held-out documents.

Protocol: each document is scored by itself, from its begin symbol; every token of its text is scored exactly once, the
end symbol never; nats are summed in float64 and divided by the UTF-8 bytes of the raw text (law 7), so that models with
other tokenizers compare. The last window of a document reaches back until it is full. `stride = context` is the
protocol of lm-evaluation-harness (with `add_bos_token=False`: otherwise it counts the begin symbol as text);
`stride = context / 2` gives every token of a long document at least half a context.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from foundry.data.tokens.documents import batches, windows
from foundry.evaluation.intervals import ratio_interval
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents
from foundry.utils.bootstrap import Interval

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Scores:
    """One entry per document: nats of the tokens of its text (float64), and the number of those tokens (int64)."""

    nats: np.ndarray
    tokens: np.ndarray


def score(
    model: MiniLLM, tokens: list[np.ndarray], stride: int, precision: torch.dtype = torch.float32, rows: int = 0
) -> Scores:
    """Scores documents given as tokens with begin and end symbol.

    Args:
        stride: tokens between the beginnings of two windows.
        rows: windows per batch; 0 chooses. It changes only the rounding.
    """
    T = model.cfg.max_seq_len
    items = windows(tokens, T, stride, reach_back=True)
    return Scores(*score_documents(model, batches(items, rows or max(1, BATCH_TOKENS // T)), len(tokens), precision))


def bits_per_byte(nats: np.ndarray, n_bytes: np.ndarray) -> float:
    return float(nats.sum() / math.log(2) / n_bytes.sum())


def bits_per_byte_interval(nats: np.ndarray, n_bytes: np.ndarray, resamples: int, seed: int) -> Interval:
    """Bits per byte with its 95 % bootstrap percentile interval over documents."""
    return ratio_interval(nats / math.log(2), n_bytes, resamples, seed)


def perplexity(nats: np.ndarray, count: np.ndarray, resamples: int, seed: int) -> Interval:
    """exp(nats / count) with its interval, where `count` is the number of tokens or words of each document."""
    of_nats = ratio_interval(nats, count, resamples, seed, digits=12)
    return Interval(**{k: float(f"{math.exp(min(v, 700.0)):.5g}") for k, v in of_nats})
