"""The rules by which a document is dropped. Their order is that of the parameters; the first broken rule gives the
reason.

A few rules are always there (length, symbols, repetition as in Gopher); the published sets of rules for crawled pages
(`web_rules`) are switched on by parameters.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from foundry.config import Clean, ConfigError
from foundry.data.clean.web_rules import c4, fineweb, gopher_quality, gopher_repetition
from foundry.data.text.grams import Words, may_repeat, read_words
from foundry.data.text.tokens import read_tokens
from foundry.data.text.words import beyond_ascii, gram_words, spaceless
from foundry.utils.inputs import refuse_linked


def _is_symbol(c: str) -> bool:
    return unicodedata.category(c)[0] in "SC" and not c.isspace()


_ASCII_SYMBOLS = "".join(filter(_is_symbol, map(chr, range(128)))).encode()

# Less often is the name of a topic, not repetition: at 2, the rule dropped 84 good lead sections of Wikipedia, at 5 it
# drops 2.
MIN_COUNT = 5
TOP_NGRAM = 3  # words

# Reason → what to set to drop fewer documents for it, in the order of the rules.
REASONS = {
    "invalid_utf8": "clean.invalid_utf8: repair",
    "language": "clean.languages or clean.min_language_score",
    "too_short": "clean.min_chars",
    "too_long": (
        "clean.max_chars (a text file is one document: cut it by lines that read <|endoftext|> or by the "
        "source's `cut`)"
    ),
    "symbol_ratio": "clean.max_symbol_ratio",
    "duplicate_lines": "clean.max_dup_line_ratio",
    "repeated_ngrams": "clean.max_top_ngram_ratio",
    "gopher_quality": "clean.gopher_quality",
    "gopher_repetition": "clean.gopher_repetition",
    "c4": "clean.c4",
    "fineweb": "clean.fineweb",
    "blocked": "clean.block_lists",
    "contaminated": "clean.decontaminate",
    "exact_duplicate": "clean.exact_dedup",
    "near_duplicate": "clean.near_dedup or clean.near_dup_threshold",
}


class Verdict(NamedTuple):
    """Why a document is dropped: a key of `REASONS`, the rule of that group, what was measured, and the threshold."""

    reason: str
    rule: str
    value: float
    threshold: float


class Judgement(NamedTuple):
    """The text without the lines that C4's rules drop, its words for n-grams, and why it is dropped (None: it is not).

    The words of a dropped text may be missing.
    """

    text: str
    words: Words | None
    verdict: Verdict | None


class Rules:
    """The rules on single documents, in the order of `REASONS`.

    Args:
        root: the folder to which the names of block lists are relative.

    Raises:
        ConfigError: if a block list cannot be read.
    """

    def __init__(self, params: Clean, root: Path) -> None:
        self.params = params
        self._blocked = BlockList(params.block_lists, root) if params.block_lists else None
        p = params
        self._counts_tokens = p.gopher_quality.enabled or p.gopher_repetition.enabled

    def apply(self, text: str, lang: str) -> Judgement:
        """Judges a text; the first rule that it breaks gives the verdict."""
        return self.apply_all([(text, lang)])[0]

    def apply_all(self, documents: list[tuple[str, str]]) -> list[Judgement]:
        """Judges up to `MAX_DOCUMENTS` texts with their languages, each on its own; what can be is computed at once."""
        p = self.params
        texts = [text for text, _ in documents]
        verdicts = list(map(self._apply_cheap_rules, texts))
        words: list[Words | None] = [None] * len(texts)

        def left() -> list[int]:
            return [i for i, verdict in enumerate(verdicts) if not verdict]

        def read(numbers: list[int]) -> None:
            for i, of_text in zip(numbers, read_words([texts[i] for i in numbers]), strict=True):
                words[i] = of_text

        if p.max_top_ngram_ratio < 1:
            read(numbers := left())
            for k in may_repeat([words[i].numbers for i in numbers], TOP_NGRAM, MIN_COUNT):
                if (share := top_ngram_ratio(words[numbers[k]].names())) > p.max_top_ngram_ratio:
                    verdict = Verdict("repeated_ngrams", "max_top_ngram_ratio", share, p.max_top_ngram_ratio)
                    verdicts[numbers[k]] = verdict
        numbers = left()
        after = self._apply_web_rules([(texts[i], documents[i][1]) for i in numbers])
        for i, (text, verdict) in zip(numbers, after, strict=True):
            if text != texts[i]:
                texts[i], words[i] = text, None
            verdicts[i] = verdict
        read([i for i in left() if words[i] is None])
        if self._blocked:
            for i in left():
                if found := self._blocked.find(texts[i], words[i].names()):
                    verdicts[i] = Verdict("blocked", found, 1, 0)
        return list(map(Judgement, texts, words, verdicts))

    def _apply_cheap_rules(self, text: str) -> Verdict | None:
        p = self.params
        if len(text) < p.min_chars:
            return Verdict("too_short", "min_chars", len(text), p.min_chars)
        if len(text) > p.max_chars:
            return Verdict("too_long", "max_chars", len(text), p.max_chars)
        if p.max_symbol_ratio < 1 and (share := symbol_ratio(text)) > p.max_symbol_ratio:
            return Verdict("symbol_ratio", "max_symbol_ratio", share, p.max_symbol_ratio)
        if p.max_dup_line_ratio < 1 and (share := dup_line_ratio(text)) > p.max_dup_line_ratio:
            return Verdict("duplicate_lines", "max_dup_line_ratio", share, p.max_dup_line_ratio)
        return None

    def _apply_web_rules(self, documents: list[tuple[str, str]]) -> Iterator[tuple[str, Verdict | None]]:
        """The published rules: (text without the lines that C4's rules drop, why it is dropped) of each document."""
        p = self.params
        texts = [text for text, _ in documents]
        verdicts: list[Verdict | None] = [None] * len(texts)
        tokens = read_tokens(texts) if self._counts_tokens else []

        def left() -> list[int]:
            return [i for i, verdict in enumerate(verdicts) if not verdict]

        if p.gopher_quality.enabled:
            for i, (text, lang) in enumerate(documents):
                if found := gopher_quality(text, tokens[i], lang, p.gopher_quality):
                    verdicts[i] = Verdict("gopher_quality", *found)
        if p.gopher_repetition.enabled:
            numbers = left()
            of_these = [(texts[i], tokens[i]) for i in numbers]
            for i, found in zip(numbers, gopher_repetition(of_these, p.gopher_repetition), strict=True):
                if found:
                    verdicts[i] = Verdict("gopher_repetition", *found)
        if p.c4.enabled:
            for i in left():
                texts[i], found = c4(texts[i], p.c4)
                if found:
                    verdicts[i] = Verdict("c4", *found)
        if p.fineweb.enabled:
            for i in left():
                if found := fineweb(texts[i], p.fineweb):
                    verdicts[i] = Verdict("fineweb", *found)
        return zip(texts, verdicts, strict=True)


class BlockList:
    """Words and phrases, one per line; `#` begins a comment.

    A phrase in a script with spaces is found only as complete words, one in Chinese, Japanese or Thai anywhere.

    Raises:
        ConfigError: if a list is missing, is not UTF-8, or is empty.
    """

    def __init__(self, paths: list[str], root: Path) -> None:
        self._anywhere: list[str] = []
        self._by_first: dict[str, list[str]] = {}
        refuse_linked((root / name for name in paths), root, "clean.block_lists")
        for name in paths:
            try:
                lines = (root / name).read_text(encoding="utf-8-sig").split("\n")
            except (OSError, UnicodeDecodeError) as e:
                raise ConfigError(f"clean.block_lists: {root / name} cannot be read ({e})") from None
            entries = [x.strip() for x in lines if x.strip() and not x.startswith("#")]
            if not entries:
                raise ConfigError(f"clean.block_lists: {root / name} contains no word")
            for entry in entries:
                words = gram_words(entry)
                if spaceless(entry):
                    self._anywhere.append(entry.lower())
                elif words:
                    self._by_first.setdefault(words[0], []).append(" ".join(words))

    def find(self, text: str, words: list[str]) -> str | None:
        """An entry that the document contains, or None. `words` are its `gram_words`."""
        for first in self._by_first.keys() & set(words):
            entries = self._by_first[first]
            if found := next((e for e in entries if e == first), None):
                return found
            joined = f" {' '.join(words)} "
            if found := next((e for e in entries if f" {e} " in joined), None):
                return found
        lower = text.lower() if self._anywhere else ""
        return next((e for e in self._anywhere if e in lower), None)


def symbol_ratio(text: str) -> float:
    """Share of the characters that are neither letters, marks, digits, white space nor punctuation."""
    if not text:
        return 0.0
    data = text.encode("utf-8", "surrogatepass")
    count = len(data) - len(data.translate(None, _ASCII_SYMBOLS))
    if not text.isascii():
        count += sum(n for c, n in Counter(beyond_ascii(text)).items() if _is_symbol(c))
    return count / len(text)


def dup_line_ratio(text: str) -> float:
    """Share of the lines that repeat an earlier line; empty lines do not count."""
    lines = [x for line in text.split("\n") if (x := line.strip())]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def top_ngram_ratio(words: list[str], n: int = TOP_NGRAM) -> float:
    """Share of the words' characters that the most frequent n-gram covers; 0 if it occurs less than `MIN_COUNT`
    times."""
    if len(words) < n + MIN_COUNT - 1:
        return 0.0
    top = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    count = max(top.values())
    if count < MIN_COUNT:
        return 0.0
    # Of several equally frequent n-grams the longest counts: the result must not depend on their order.
    size = max(sum(map(len, gram)) for gram, c in top.items() if c == count)
    return min(1.0, count * size / sum(map(len, words)))
