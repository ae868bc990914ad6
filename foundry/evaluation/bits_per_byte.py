"""Bits per byte of held-out documents.

Protocol: each document is scored by itself, from its begin symbol; every token of its text is scored exactly once, the
end symbol never; nats are summed in float64 and divided by the UTF-8 bytes of the raw text (law 7), so that models with
other tokenizers compare. The last window of a document reaches back until it is full. `stride = context` is the
protocol of lm-evaluation-harness (with `add_bos_token=False`: otherwise it counts the begin symbol as text);
`stride = context / 2` gives every token of a long document at least half a context.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch

from foundry.config import DataError
from foundry.data.tokens.documents import batches, windows
from foundry.data.tokens.shards import Shards
from foundry.evaluation.intervals import ratio_interval
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents
from foundry.utils.bootstrap import Interval

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Documents:
    """Held-out documents in one order, with facts of their raw text.

    Attributes:
        tokens: with begin and end symbol.
        n_bytes: int64, UTF-8 bytes of the raw text.
        words: int64, runs of characters between white space.
        every: each `every`-th document of the split was taken.
        split: documents of the split.
    """

    tokens: list[np.ndarray]
    n_bytes: np.ndarray
    words: np.ndarray
    sources: list[str]
    langs: list[str]
    doc_ids: list[str]
    texts: list[str]
    every: int = 1
    split: int = 0

    def __len__(self) -> int:
        return len(self.tokens)


def held_out(shards: Shards, rows: Iterable[dict[str, str]], most_bytes: int = 0) -> Documents:
    """Joins a split's tokens with the rows of its clean text; only the documents that are taken are in memory.

    Args:
        rows: doc_id, text and lang of every document of the split.
        most_bytes: every n-th document is taken, with the smallest n that gives about this many bytes of raw text; 0:
            all. The choice depends on the text only, so models with other tokenizers are scored on the same documents.

    Raises:
        DataError: if the split has no document, or tokens and text are not of the same documents.
    """
    ids = shards.doc_ids()
    if not ids:
        raise DataError(
            f"the {shards.split} split contains no document: give it a larger share (clean.{shards.split}_fraction) "
            "or add text"
        )
    size = sum(entry.bytes for entry in shards.entries)
    every = max(1, -(-size // most_bytes)) if most_bytes else 1
    wanted, count, by_id = set(ids[::every]), 0, {}
    for row in rows:
        count += 1
        if row["doc_id"] in wanted:
            by_id[row["doc_id"]] = row
    if count != len(ids) or len(by_id) != len(wanted):
        raise DataError(
            f"data/shards and data/clean/{shards.split} are not of the same documents ({len(ids)} and {count}, "
            f"{len(by_id)} of {len(wanted)} wanted ones found): run `dvc repro shard`"
        )
    ids = ids[::every]
    documents = list(islice(shards.documents(), 0, None, every))
    texts = [by_id[i]["text"] for i in ids]
    return Documents(
        tokens=[t for t, _, _ in documents],
        n_bytes=np.fromiter((n for _, n, _ in documents), np.int64, len(ids)),
        words=np.fromiter((len(t.split()) for t in texts), np.int64, len(ids)),
        sources=[s for _, _, s in documents],
        langs=[by_id[i]["lang"] for i in ids],
        doc_ids=ids,
        texts=texts,
        every=every,
        split=count,
    )


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
