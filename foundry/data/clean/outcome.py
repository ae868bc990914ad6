"""What one run of cleaning decided about every document: the state that its passes fill and its reports read."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from foundry.data.clean.prepare import Job

Result = dict[str, Any]  # of a unit: Counts.as_json() and its samples


@dataclass
class Statistics:
    """Of the documents that stay."""

    kept: Counter[int] = field(default_factory=Counter)  # by unit
    documents: Counter[tuple[str, str]] = field(default_factory=Counter)  # (split, source)
    bytes: Counter[tuple[str, str]] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    language_bytes: Counter[str] = field(default_factory=Counter)
    chars: Counter[int] = field(default_factory=Counter)  # bit length of the number of characters
    domains: Counter[str] = field(default_factory=Counter)

    def add(self, unit: int, source: str, split: str, data: bytes, lang: str, domain: str) -> None:
        self.kept[unit] += 1
        self.documents[split, source] += 1
        self.bytes[split, source] += len(data)
        self.languages[lang] += 1
        self.language_bytes[lang] += len(data)
        self.chars[len(data.decode()).bit_length()] += 1
        if domain:
            self.domains[domain] += 1


@dataclass
class Outcome:
    """Arrays are indexed by document, numbered through all units.

    Attributes:
        results: the counts and samples of each unit.
        bases: the number of each unit's first record in its file.
        prepared: numbers of the units that have documents; `starts`: the first document of each, and the end.
        ids: hash of the text. first: the document that stays in place of each (its own number if it stays).
        near: similarity to that one, of near duplicates. dropped: whether it is a duplicate.
        pairs: (n, 2) documents that were compared; `similarity`: how similar they are.
        group_sizes: documents of each group of similar ones, indexed by the first.
        splits: train, val or test; empty for a dropped document.
        clusters: the documents with most copies, for the page.
    """

    job: Job
    results: list[Result] = field(default_factory=list)
    bases: list[int] = field(default_factory=list)
    prepared: list[int] = field(default_factory=list)
    starts: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    ids: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint64))
    first: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    near: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    dropped: np.ndarray = field(default_factory=lambda: np.empty(0, np.bool_))
    pairs: np.ndarray = field(default_factory=lambda: np.empty((0, 2), np.int64))
    similarity: np.ndarray = field(default_factory=lambda: np.empty(0, np.float64))
    group_sizes: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))
    splits: list[str] = field(default_factory=list)
    clusters: list[dict[str, Any]] = field(default_factory=list)
    statistics: Statistics = field(default_factory=Statistics)

    def units_of(self, documents: np.ndarray) -> np.ndarray:
        """The numbers of documents' units."""
        return np.array(self.prepared, np.int64)[np.searchsorted(self.starts, documents, side="right") - 1]
