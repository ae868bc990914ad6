"""Which documents the tokenizer is trained on: a seeded sample, balanced by language, up to a byte budget.

Whether a document is taken depends on its own id, the seed and the sizes of the languages, never on its place in the
corpus. A language whose text is less than its even share gives the rest to the others; when everything fits, every
document is taken. Memory is bounded by the number of languages: documents are counted in buckets of their hash, and
complete buckets are taken until the language's share is full (the bucket that does not fit is left out; one is always
taken).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from foundry.config import TokenizerParams
from foundry.utils.records import Record

BUCKETS = 1 << 14


class LanguageShare(Record):
    """Bytes of a language in the corpus, and in the sample that the tokenizer is trained on."""

    bytes: int
    taken: int


class Sample:
    """The documents to train on.

    Args:
        documents: (doc_id, language, bytes) of every document; one pass.
        params: `max_train_bytes`, `balance_languages` and `seed` are used.

    Attributes:
        documents, bytes: of the whole corpus.
        taken: bytes of the sample.
    """

    def __init__(self, documents: Iterable[tuple[str, str, int]], params: TokenizerParams) -> None:
        self._key = params.seed.to_bytes(8, "big")
        self._balance = params.balance_languages
        self.documents = 0
        sizes: dict[str, np.ndarray] = {}
        for doc_id, lang, n_bytes in documents:
            group = lang if self._balance else ""
            if group not in sizes:
                sizes[group] = np.zeros(BUCKETS, np.int64)
            sizes[group][self._bucket(doc_id)] += n_bytes
            self.documents += 1
        totals = {group: int(size.sum()) for group, size in sorted(sizes.items())}
        self.bytes = sum(totals.values())
        given = shares(totals, params.max_train_bytes)
        self._last = {group: _last_bucket(sizes[group], given[group]) for group in totals}
        self._taken = {group: int(sizes[group][: last + 1].sum()) for group, last in self._last.items()}
        self._totals = totals
        self.taken = sum(self._taken.values())

    def takes(self, doc_id: str, lang: str) -> bool:
        """Whether a document belongs to the sample."""
        return self._bucket(doc_id) <= self._last[lang if self._balance else ""]

    def languages(self) -> dict[str, LanguageShare] | None:
        """How much of each language is in the sample; None if the languages are not balanced."""
        if not self._balance:
            return None
        return {g: LanguageShare(bytes=self._totals[g], taken=self._taken[g]) for g in self._totals}

    def _bucket(self, doc_id: str) -> int:
        digest = hashlib.blake2b(doc_id.encode(), digest_size=8, key=self._key).digest()
        return int.from_bytes(digest, "big") % BUCKETS


def shares(totals: dict[str, int], budget: int) -> dict[str, int]:
    """The budget divided evenly, as far as each has text; what one does not need goes to the others."""
    given: dict[str, int] = {}
    left = budget
    for i, (name, total) in enumerate(sorted(totals.items(), key=lambda item: (item[1], item[0]))):
        given[name] = min(total, left // (len(totals) - i))
        left -= given[name]
    return given


def _last_bucket(sizes: np.ndarray, share: int) -> int:
    """The last bucket that fits into the share; if none does, the first with text."""
    filled = np.cumsum(sizes)
    first = int(np.argmax(sizes > 0))
    return max(first, int(np.searchsorted(filled, share, side="right")) - 1)
