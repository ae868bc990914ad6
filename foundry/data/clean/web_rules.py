"""The published quality rules for crawled pages: Gopher (Rae et al. 2021), C4 (Raffel et al. 2020), FineWeb (Penedo et
al. 2024).

Each function returns the first broken rule, what it measured and the threshold, or None. The default thresholds are the
published ones. For English the rules decide like the reference implementation for at least 99% of the documents, at
many times its speed: one tokenisation serves all rules, and repetition is found by sorting hashes instead of building
strings.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from foundry.config.corpus import C4, FineWeb, GopherQuality, GopherRepetition
from foundry.data.text.grams import word_numbers
from foundry.data.text.words import spaceless, stop_words
from foundry.utils.splitmix import GAMMA, mix


class Finding(NamedTuple):
    rule: str
    value: float
    threshold: float


_BULLETS = ("•", "-", "·", "●", "▪", "＊")


class _Shapes(dict):
    """token → three counts in one number, so that one sum adds them all.

    They are 1 if the token has a letter or digit, its length in that case, and 1 if it has a letter.
    """

    def __missing__(self, token: str) -> int:
        if len(self) > 1 << 18:
            self.clear()
        word = any(c.isalnum() for c in token)
        shape = word * min(len(token), _LONGEST) | word << 26 | any(c.isalpha() for c in token) << 44
        self[token] = shape
        return shape


_shapes = _Shapes()
_LONGEST, _AT_ONCE = 255, 1 << 17  # 2^17 words of 2^8 letters: no sum overflows into the next one


def _count_shapes(words: list[str]) -> tuple[int, int, int]:
    """(characters of the words that are not symbols, their number, number of words with a letter)"""
    length = count = alpha = 0
    for i in range(0, len(words), _AT_ONCE):
        total = sum(map(_shapes.__getitem__, words[i : i + _AT_ONCE]))
        length, count, alpha = length + (total & 0x3FFFFFF), count + (total >> 26 & 0x3FFFF), alpha + (total >> 44)
    return length, count, alpha


def gopher_quality(text: str, words: list[str], lang: str, p: GopherQuality) -> Finding | None:
    """Rae et al. 2021, appendix A.1.1. `words` are the document's tokens."""
    length, count, alpha = _count_shapes(words)
    if count < p.min_words:
        return Finding("min_words", count, p.min_words)
    if count > p.max_words:
        return Finding("max_words", count, p.max_words)
    if not words:
        return None
    if 2 * spaceless(text) < len(text):
        mean = length / max(count, 1)
        if mean < p.min_mean_word_length:
            return Finding("min_mean_word_length", mean, p.min_mean_word_length)
        if mean > p.max_mean_word_length:
            return Finding("max_mean_word_length", mean, p.max_mean_word_length)
    for symbols in (text.count("#"), text.count("...") + text.count("…")):
        if symbols / len(words) > p.max_symbol_word_ratio:
            return Finding("max_symbol_word_ratio", symbols / len(words), p.max_symbol_word_ratio)
    lines = text.splitlines()
    bullets = sum(x.lstrip().startswith(_BULLETS) for x in lines) / len(lines)
    if bullets > p.max_bullet_lines:
        return Finding("max_bullet_lines", bullets, p.max_bullet_lines)
    if "..." in text or "…" in text:
        ellipses = sum(x.rstrip().endswith(("...", "…")) for x in lines) / len(lines)
        if ellipses > p.max_ellipsis_lines:
            return Finding("max_ellipsis_lines", ellipses, p.max_ellipsis_lines)
    if alpha / len(words) < p.min_alpha_words:
        return Finding("min_alpha_words", alpha / len(words), p.min_alpha_words)
    if p.min_stop_words and (stops := stop_words(lang, text)):
        found = len(stops.intersection(words))
        if found < p.min_stop_words:
            return Finding("min_stop_words", found, p.min_stop_words)
    return None


_PARAGRAPHS = re.compile(r"\n{2,}")
_LINES = re.compile(r"\n+")


def repeated(pieces: list[str]) -> tuple[int, int]:
    """(number of pieces that repeat an earlier one, their characters)"""
    if len(set(pieces)) == len(pieces):
        return 0, 0
    seen: set[str] = set()
    count = chars = 0
    for piece in pieces:
        if piece in seen:
            count += 1
            chars += len(piece)
        else:
            seen.add(piece)
    return count, chars


def gopher_repetition(text: str, words: list[str], p: GopherRepetition) -> Finding | None:
    """Rae et al. 2021, table A1. `words` are the document's tokens."""
    for pieces, most, most_chars, name in (
        (_PARAGRAPHS.split(text.strip()), p.max_dup_paragraphs, p.max_dup_paragraph_chars, "paragraph"),
        (_LINES.split(text), p.max_dup_lines, p.max_dup_line_chars, "line"),
    ):
        count, chars = repeated(pieces)
        if count / len(pieces) > most:
            return Finding(f"max_dup_{name}s", count / len(pieces), most)
        if chars / len(text) > most_chars:
            return Finding(f"max_dup_{name}_chars", chars / len(text), most_chars)
    return _repeated_grams(words, len(text), p)


def _repeated_grams(words: list[str], size: int, p: GopherRepetition) -> Finding | None:
    """Shares of n-grams. An n-gram cannot occur more often than the (n-1)-gram it begins with: most documents need only
    two sorts."""
    numbers = word_numbers(words)
    ends = np.zeros(len(words) + 1, np.int64)
    np.cumsum(np.fromiter(map(len, words), np.int64, len(words)), out=ends[1:])
    limits = sorted([(int(n), s, True) for n, s in p.max_top_ngram_chars.items()]) + sorted(
        [(int(n), s, False) for n, s in p.max_dup_ngram_chars.items()]
    )
    grams, at = numbers, 1
    most = len(words)  # how often one n-gram can occur
    for n, share, top in limits:
        if n > len(words) or most == 1:
            break
        for k in range(at, n):  # overflow is intended
            grams = grams[:-1] * GAMMA + numbers[k : k + len(grams) - 1]
        at = max(at, n)
        lengths = ends[n:] - ends[:-n]
        if top and most * (int(lengths.max()) + n - 1) <= share * size:
            continue
        hashes = mix(grams)
        ordered = np.sort(hashes)
        again = ordered[1:] == ordered[:-1]
        if not again.any():
            most = 1
            break
        if top:
            most, covered = _top(ordered, hashes, lengths + (n - 1))
        else:
            covered = _covered(np.unique(ordered[1:][again]), hashes, lengths, n)
        if covered / size > share:
            return Finding(f"max_{'top' if top else 'dup'}_ngram_chars.{n}", covered / size, share)
    return None


def _top(ordered: np.ndarray, hashes: np.ndarray, lengths: np.ndarray) -> tuple[int, int]:
    """(count of the most frequent n-gram, characters that it covers); of equally frequent ones the first in the
    text."""
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    counts = np.diff(np.r_[starts, len(ordered)])
    most = int(counts.max())
    first = int(np.isin(hashes, ordered[starts[counts == most]]).argmax())
    return most, most * int(lengths[first])


def _covered(twice: np.ndarray, hashes: np.ndarray, lengths: np.ndarray, n: int) -> int:
    """Characters of the n-grams that repeat an earlier one, read from left to right without overlaps."""
    places = np.flatnonzero(np.isin(hashes, twice))
    seen: set[int] = set()
    covered = free = 0
    for i, h in zip(places.tolist(), hashes[places].tolist(), strict=True):
        if i < free:
            continue
        if h in seen:
            covered += int(lengths[i])
            free = i + n
        else:
            seen.add(h)
    return covered


_CITATION = re.compile(r"\[\d*]|\[edit]|\[citation needed]")
_ENDS = (".", "?", "!", '"', "'", "”", "’", "。", "！", "？", "…", "」", "』", "；")
_POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")
_POLICY_ZH = ("隐私政策", "隱私政策", "使用条款", "使用條款", "服务条款", "使用cookie")
_SENTENCE = re.compile(
    r"(?:(?<![.\s][A-Za-z])(?<!\b(?:Mr|Dr|St|vs|No))(?<!\b(?:Mrs|etc))[.]+|[!?]+)(?=[\"'”’)\]]*(?:\s|$))|[。！？]+"
)


def c4(text: str, p: C4) -> tuple[str, Finding | None]:
    """Raffel et al. 2020, section 2.2: (the text without the lines that are dropped, finding)."""
    sentences = 0
    kept = []
    for raw in text.splitlines():
        line = raw.strip()
        words = line.split()
        if len(line) > p.max_word_length > 0 and not spaceless(line) and max(map(len, words)) > p.max_word_length:
            continue
        if "[" in line:
            line = _CITATION.sub("", line)
        if p.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")):
            continue
        if len(words) < p.min_words_per_line and len(words) + spaceless(line) - 1 < p.min_words_per_line:
            continue
        lower = line.lower()
        if p.drop_lorem_ipsum and "lorem ipsum" in lower:
            return text, Finding("drop_lorem_ipsum", 1, 0)
        if p.drop_javascript and "javascript" in lower:
            continue
        if p.drop_curly_bracket and "{" in line:
            return text, Finding("drop_curly_bracket", 1, 0)
        if p.drop_policy and any(x in lower for x in (*_POLICY, *_POLICY_ZH)):
            continue
        sentences += max(1, len(_SENTENCE.findall(line)) + (not _ended(line)))
        kept.append(line)
    if sentences < p.min_sentences:
        return text, Finding("min_sentences", sentences, p.min_sentences)
    return "\n".join(kept).strip(), None


def _ended(line: str) -> bool:
    return line.rstrip("\"'”’)]」』").endswith((".", "!", "?", "。", "！", "？"))


_STOPS = tuple(".!?…。！？؟۔।॥።။។\"'”’」』;；")


def fineweb(text: str, words: list[str], p: FineWeb) -> Finding | None:
    """Penedo et al. 2024, section 3.6. `words` are the document's tokens; a character of a script without spaces counts
    as two letters."""
    lines = [x for x in text.split("\n") if x.strip()]
    if not lines:
        return Finding("min_line_punctuation", 0.0, p.min_line_punctuation)
    ended = sum(x.endswith(_STOPS) for x in lines) / len(lines)
    if ended < p.min_line_punctuation:
        return Finding("min_line_punctuation", ended, p.min_line_punctuation)
    wide = spaceless(text) > 0
    short = sum(len(x) + (spaceless(x) if wide else 0) <= p.short_line for x in lines) / len(lines)
    if short > p.max_short_lines:
        return Finding("max_short_lines", short, p.max_short_lines)
    chars = repeated(lines)[1] / (len(text) - text.count("\n"))
    if chars > p.max_dup_line_chars:
        return Finding("max_dup_line_chars", chars, p.max_dup_line_chars)
    ratio = text.count("\n") / max(len(words), 1)
    if ratio > p.max_newline_ratio:
        return Finding("max_newline_ratio", ratio, p.max_newline_ratio)
    return None
