"""What a step reads: the documents behind a batch, for people and for error messages."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from foundry.data.tokens.loader import DataLoader


@dataclass(frozen=True)
class Part:
    """A part of a document in a row of a batch.

    Attributes:
        begin, end: tokens of the document that the row reads, begin symbol counted.
        tokens: of the part.
    """

    row: int
    shard: str
    source: str
    doc_id: str
    begin: int
    end: int
    tokens: np.ndarray


def parts(loader: DataLoader, batch: int) -> Iterator[Part]:
    """The documents that this rank's rows of a batch read, in their order."""
    shards = loader.shards
    for row, pieces in enumerate(loader.contents(batch), start=loader.rows.start):
        for shard, first, count in pieces:
            info = shards.infos[shard]
            for doc_id, at, begin, end in shards.documents_at(shard, first, count):
                tokens = shards.tokens[shard][at + begin : at + end]
                yield Part(row, info["file"], info["source"], doc_id, begin, end, tokens)


def told(loader: DataLoader, batch: int, most: int = 8) -> str:
    """One line for an error message: shards and documents of a batch."""
    found = {(p.shard, p.doc_id): None for p in parts(loader, batch)}
    names = [f"{shard} {doc_id}" for shard, doc_id in found]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"it read {', '.join(names[:most])}{more} (`foundry inspect --step` prints them)"
