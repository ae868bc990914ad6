"""Text of the test split on which an export is proved and its rounding formats are scored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from foundry.data.tokens.documents import ScoringBatch, batches, windows
from foundry.data.tokens.shards import read_clean
from foundry.tokenizers import Tokenizer

TEXTS = 64
SCORED_TOKENS = 32_768  # the difference is paired: its interval is narrow already
LONGEST = 65_536  # characters of a document
BATCH_TOKENS = 4096


@dataclass(frozen=True)
class ProofText:
    """Text of the test split.

    Attributes:
        texts: the first `TEXTS` documents.
        batches: of documents spread evenly over the split, of at most `SCORED_TOKENS` tokens.
        n_bytes: int64, UTF-8 bytes of each of these.
    """

    texts: list[str]
    batches: list[ScoringBatch]
    n_bytes: np.ndarray


def proof_text(tokenizer: Tokenizer, context: int, folder: str | Path = "data/clean/test") -> ProofText:
    """Reads the clean test split.

    Documents are cut to `LONGEST` characters. The split is read twice and is never in memory as a whole.
    """
    size = sum(row["n_bytes"] for rows in read_clean(folder, ["n_bytes"]) for row in rows)
    every = max(1, -(-size // (2 * SCORED_TOKENS)))  # a token is two bytes or more of ordinary text
    texts: list[str] = []
    documents: list[np.ndarray] = []
    n_bytes: list[int] = []
    taken = 0
    for number, row in enumerate(row for rows in read_clean(folder, ["text"]) for row in rows):
        if len(texts) >= TEXTS and taken >= SCORED_TOKENS:
            break
        text = row["text"][:LONGEST]
        if len(texts) < TEXTS:
            texts.append(text)
        if number % every == 0 and text and taken < SCORED_TOKENS:
            tokens = tokenizer.encode(text, bos=True, eos=True)
            if not documents or taken + len(tokens) - 2 <= SCORED_TOKENS:
                documents.append(np.array(tokens))
                n_bytes.append(len(text.encode()))
                taken += len(tokens) - 2
    items = windows(documents, context, context)
    return ProofText(texts, list(batches(items, max(1, BATCH_TOKENS // context))), np.array(n_bytes))
