"""Complete documents as padded windows, for scoring: every token of the text exactly once, the end symbol never.

Windows contain at most `seq_len` tokens and begin `stride` tokens apart. A token is scored in the first window that has
it as a target, so with stride < seq_len every later token sees at least seq_len - stride tokens before it. With
`reach_back` the last window of a document begins so early that it is full, as in lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from foundry.data.tokens.shards import Shards, TokenizedDocument
from foundry.utils.targets import IGNORE


@dataclass(frozen=True)
class Window:
    """A part of a document.

    Attributes:
        document: its number.
        tokens: the inputs and, one further, the targets.
        first_scored: the targets before it were scored in an earlier window.
    """

    document: int
    tokens: np.ndarray
    first_scored: int


class ScoringBatch(NamedTuple):
    """Windows as rows, padded on the right.

    Attributes:
        tokens: int64 (B, T).
        targets: int64 (B, T); IGNORE where nothing is scored.
        documents: the document of each row: int64 (B,).
    """

    tokens: np.ndarray
    targets: np.ndarray
    documents: np.ndarray


def windows(documents: list[np.ndarray], seq_len: int, stride: int, reach_back: bool = False) -> list[Window]:
    """The windows of documents given as tokens with begin and end symbol.

    Raises:
        ValueError: if stride is not in [1, seq_len].
    """
    if not 1 <= stride <= seq_len:
        raise ValueError(f"stride must be in [1, {seq_len}], got {stride}")
    out = []
    for d, tokens in enumerate(documents):
        n = len(tokens) - 2  # targets: the text, without begin and end symbol
        scored = 0
        for start in range(0, max(n, 0), stride):
            if scored >= n:
                break
            begin = max(0, min(start, n - seq_len)) if reach_back else start
            part = tokens[begin : min(begin + seq_len, n) + 1]
            out.append(Window(d, part, scored - begin))
            scored = begin + len(part) - 1
    return out


def batches(items: list[Window], rows: int) -> Iterator[ScoringBatch]:
    """Batches of at most `rows` windows, those of like length together."""
    order = sorted(range(len(items)), key=lambda i: (-len(items[i].tokens), i))
    for at in range(0, len(order), rows):
        group = [items[i] for i in order[at : at + rows]]
        width = len(group[0].tokens) - 1
        tokens = np.zeros((len(group), width), np.int64)
        targets = np.full((len(group), width), IGNORE, np.int64)
        for r, w in enumerate(group):
            n = len(w.tokens) - 1
            tokens[r, :n] = w.tokens[:-1]
            targets[r, w.first_scored : n] = w.tokens[1 + w.first_scored :]
        yield ScoringBatch(tokens, targets, np.fromiter((w.document for w in group), np.int64, len(group)))


def spread_documents(shards: Shards, max_tokens: int) -> list[TokenizedDocument]:
    """Documents that are spread evenly over the split and have about `max_tokens` tokens together."""
    total = sum(e.tokens for e in shards.entries)
    every = max(1, -(-total // max_tokens))
    return [document for i, document in enumerate(shards.documents()) if i % every == 0]
