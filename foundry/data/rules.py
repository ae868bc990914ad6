"""Rules: why a document is dropped. The order is that of the parameters; the first rule that speaks names the reason.

Repetition after Gopher (Rae et al. 2021, appendix A), counted in units: a word, or one character of scripts that write
no spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese), where word counts would mean nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

from foundry.config import Clean

NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs are no \w to Python; they belong to their words.
_UNIT = re.compile(
    rf"[{NO_SPACES}]|[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])*"
)
_WORD = re.compile(r"\w+")  # the same where neither of the two occurs, five times as fast
_BEYOND_LATIN = re.compile("[^\x00-\u02ff]")
_PLAIN = re.compile(r"[A-Za-z0-9\s.,;:!?'\"()\-]+")

MIN_COUNT = (
    5  # less is a topic's name, not repetition: at 2, the rule dropped 84 good leads of Wikipedia, at 5 it drops 2
)

# Reason -> what to set, in the order of the rules.
REASONS = {
    "invalid_utf8": "clean.invalid_utf8: repair",
    "too_short": "clean.min_chars",
    "too_long": "clean.max_chars (a text file is one document: cut it by lines that read <|endoftext|>)",
    "symbol_ratio": "clean.max_symbol_ratio",
    "duplicate_lines": "clean.max_dup_line_ratio",
    "repeated_ngrams": "clean.max_top_ngram_ratio",
    "exact_duplicate": "clean.exact_dedup",
    "near_duplicate": "clean.near_dedup or clean.near_dup_threshold",
}


def units(text: str) -> list[str]:
    """Words in lower case, or single characters of scripts without spaces."""
    text = text.lower()
    return _UNIT.findall(text) if _BEYOND_LATIN.search(text) else _WORD.findall(text)


def judge(text: str, words: list[str], rules: Clean) -> str | None:
    """The reason to drop a document, or None; duplicates are found elsewhere. `words` are its units."""
    if len(text) < rules.min_chars:
        return "too_short"
    if len(text) > rules.max_chars:
        return "too_long"
    if symbol_ratio(text) > rules.max_symbol_ratio:
        return "symbol_ratio"
    if dup_line_ratio(text) > rules.max_dup_line_ratio:
        return "duplicate_lines"
    if top_ngram_ratio(words) > rules.max_top_ngram_ratio:
        return "repeated_ngrams"
    return None


def symbol_ratio(text: str) -> float:
    """Share of characters that are neither letters, marks, digits, space nor punctuation."""
    rest = _PLAIN.sub("", text)
    return sum(unicodedata.category(c)[0] in "SC" for c in rest) / len(text) if text else 0.0


def dup_line_ratio(text: str) -> float:
    """Share of the lines, empty ones left out, that repeat an earlier line."""
    lines = [x for line in text.split("\n") if (x := line.strip())]
    return 1 - len(set(lines)) / len(lines) if lines else 0.0


def top_ngram_ratio(words: list[str], n: int = 3) -> float:
    """Share of the units' characters that the most frequent n-gram covers; 0 if it occurs under `MIN_COUNT` times."""
    if len(words) < n + MIN_COUNT - 1:
        return 0.0
    top = Counter(zip(*(words[i:] for i in range(n)), strict=False))
    count = max(top.values())
    if count < MIN_COUNT:
        return 0.0
    # Of several equally frequent ones the longest counts: the answer must not depend on their order.
    size = max(sum(map(len, gram)) for gram, c in top.items() if c == count)
    return min(1.0, count * size / sum(map(len, words)))
