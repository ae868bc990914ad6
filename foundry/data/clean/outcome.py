"""What one run of cleaning decided about every document: the state that its passes fill and its reports read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from foundry.data.clean.unit import Job, UnitResult


@dataclass
class Statistics:
    """Of the documents that are kept."""

    kept: Counter[int] = field(default_factory=Counter)  # by unit
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)  # by (split, source)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    language_bytes: Counter[str] = field(default_factory=Counter)
    chars: Counter[int] = field(default_factory=Counter)  # by the bit length of the number of characters
    domains: Counter[str] = field(default_factory=Counter)
    fields: Counter[tuple[str, str]] = field(default_factory=Counter)  # documents by (source, field that they have)

    def add(self, unit: int, source: str, splits: np.ndarray, batch: pa.RecordBatch) -> None:
        """Adds documents of a unit.

        Args:
            splits: of each document: str.
            batch: their columns text, lang, domain and fields.
        """
        text, lang, domain, fields = batch.columns
        sizes = pc.binary_length(text).to_numpy()
        self.kept[unit] += len(batch)
        for split in np.unique(splits).tolist():
            self.documents[split, source] += int((splits == split).sum())
            self.bytes[split, source] += int(sizes[splits == split].sum())
        languages = lang.to_numpy(zero_copy_only=False)
        for name, count in Counter(languages.tolist()).items():
            self.languages[name] += count
            self.language_bytes[name] += int(sizes[languages == name].sum())
        lengths = np.frexp(pc.utf8_length(text.cast(pa.large_string())).to_numpy())[1]  # the exponent is the bit length
        for bits, count in zip(*(x.tolist() for x in np.unique(lengths, return_counts=True)), strict=True):
            self.chars[bits] += count
        self.domains.update(filter(None, domain.to_pylist()))
        for found in filter(None, fields.to_pylist()):
            self.fields.update((source, name) for name in json.loads(found))


@dataclass(frozen=True)
class Cluster:
    """A document that was kept, and how many duplicates of it were dropped."""

    copies: int
    excerpt: str


def _empty(dtype: type, *shape: int) -> Callable[[], np.ndarray]:
    return lambda: np.empty(shape or (0,), dtype)


@dataclass
class Outcome:
    """Arrays are indexed by document; documents are numbered through all units.

    Attributes:
        results: the counts and examples of each unit.
        bases: the number of each unit's first record in its file.
        prepared: numbers of the units that have documents; `starts`: the first document of each, and the end.
        ids: hash of the text.
        first: the document that is kept in place of each (its own number if it is kept).
        near: similarity to that document, for near duplicates, else 0.
        dropped: whether it is a duplicate.
        pairs: (n, 2) documents that were compared; `similarity`: how similar the two are.
        group: the first document of each one's group of similar documents; `group_sizes`: documents of a group,
            indexed by its first one.
        splits: train, val or test; empty for a dropped document.
        clusters: the documents with most copies, for the page.
    """

    job: Job
    results: list[UnitResult] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    starts: np.ndarray = field(default_factory=_empty(np.int64))
    ids: np.ndarray = field(default_factory=_empty(np.uint64))
    first: np.ndarray = field(default_factory=_empty(np.int64))
    near: np.ndarray = field(default_factory=_empty(np.float64))
    dropped: np.ndarray = field(default_factory=_empty(np.bool_))
    pairs: np.ndarray = field(default_factory=_empty(np.int64, 0, 2))
    similarity: np.ndarray = field(default_factory=_empty(np.float64))
    group: np.ndarray = field(default_factory=_empty(np.int64))
    group_sizes: np.ndarray = field(default_factory=_empty(np.int64))
    splits: list[str] = field(default_factory=list)
    clusters: list[Cluster] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    def units_of(self, documents: np.ndarray) -> np.ndarray:
        """The numbers of documents' units."""
        return np.array(self.prepared, np.int64)[np.searchsorted(self.starts, documents, side="right") - 1]
