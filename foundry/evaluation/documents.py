"""Held-out documents: their tokens beside their raw text. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

import numpy as np

from foundry.config import DataError
from foundry.data.tokens.shards import Shards


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
