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
from foundry.data.text.tokens import Tokens, numbered, read_tokens
from foundry.data.text.words import spaceless, stop_words
from foundry.utils.splitmix import GAMMA, mix


class Finding(NamedTuple):
    rule: str
    value: float
    threshold: float


_LESS = 1 - 1e-9  # than a limit: what rounding could change is examined
MAX_DOCUMENTS, _LONG = 1 << 12, (1 << 12) - 1  # what 12 bits of a key can tell apart
_FIRST_RUNS = 100  # in which most texts have enough stop words
_BULLETS = ("•", "-", "·", "●", "▪", "＊")


def gopher_quality(text: str, tokens: Tokens, lang: str, p: GopherQuality) -> Finding | None:
    """Rae et al. 2021, appendix A.1.1."""
    if tokens.words < p.min_words:
        return Finding("min_words", tokens.words, p.min_words)
    if tokens.words > p.max_words:
        return Finding("max_words", tokens.words, p.max_words)
    if not tokens.count:
        return None
    if 2 * spaceless(text) < len(text):
        mean = tokens.chars / max(tokens.words, 1)
        if mean < p.min_mean_word_length:
            return Finding("min_mean_word_length", mean, p.min_mean_word_length)
        if mean > p.max_mean_word_length:
            return Finding("max_mean_word_length", mean, p.max_mean_word_length)
    for symbols in (text.count("#"), text.count("...") + text.count("…")):
        if symbols / tokens.count > p.max_symbol_word_ratio:
            return Finding("max_symbol_word_ratio", symbols / tokens.count, p.max_symbol_word_ratio)
    lines = text.splitlines()
    if sum(map(text.count, _BULLETS)) / len(lines) > p.max_bullet_lines:  # else there cannot be enough
        bullets = sum(x.lstrip().startswith(_BULLETS) for x in lines) / len(lines)
        if bullets > p.max_bullet_lines:
            return Finding("max_bullet_lines", bullets, p.max_bullet_lines)
    if "..." in text or "…" in text:
        ellipses = sum(x.rstrip().endswith(("...", "…")) for x in lines) / len(lines)
        if ellipses > p.max_ellipsis_lines:
            return Finding("max_ellipsis_lines", ellipses, p.max_ellipsis_lines)
    if tokens.alpha / tokens.count < p.min_alpha_words:
        return Finding("min_alpha_words", tokens.alpha / tokens.count, p.min_alpha_words)
    if p.min_stop_words and (stops := stop_words(lang, text)):
        if len(stops.intersection(tokens.first_runs(_FIRST_RUNS))) >= p.min_stop_words:
            return None
        found = tokens.among(stops)
        if found < p.min_stop_words:
            return Finding("min_stop_words", found, p.min_stop_words)
    return None


_PARAGRAPHS = re.compile(r"\n{2,}")


def _paragraphs(text: str) -> list[str]:
    return _PARAGRAPHS.split(text) if "\n\n\n" in text else text.split("\n\n")


def _lines(text: str) -> list[str]:
    """The text divided at each run of line feeds."""
    return [*[""][: text.startswith("\n")], *filter(None, text.split("\n")), *[""][: text.endswith("\n")]]


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


def gopher_repetition(documents: list[tuple[str, Tokens]], p: GopherRepetition) -> list[Finding | None]:
    """Rae et al. 2021, table A1.

    Args:
        documents: up to `MAX_DOCUMENTS`, each with its tokens.
    """
    found = [_repeated_lines(text, p) for text, _ in documents]
    left = [i for i, finding in enumerate(found) if not finding]
    suspects = _may_repeat([documents[i][1] for i in left], [len(documents[i][0]) for i in left], p)
    for i in (left[k] for k in np.flatnonzero(suspects)):
        text, tokens = documents[i]
        found[i] = _repeated_grams(tokens, len(text), p)
    return found


def _repeated_lines(text: str, p: GopherRepetition) -> Finding | None:
    """The rules on paragraphs and lines."""
    for pieces, most, most_chars, name in (
        (_paragraphs(text.strip()), p.max_dup_paragraphs, p.max_dup_paragraph_chars, "paragraph"),
        (_lines(text), p.max_dup_lines, p.max_dup_line_chars, "line"),
    ):
        count, chars = repeated(pieces)
        if count / len(pieces) > most:
            return Finding(f"max_dup_{name}s", count / len(pieces), most)
        if chars / len(text) > most_chars:
            return Finding(f"max_dup_{name}_chars", chars / len(text), most_chars)
    return None


class _Limit(NamedTuple):
    """The share of the characters that the most frequent n-gram (`top`), or all repeated ones, may cover."""

    n: int
    share: float
    top: bool


def _limits(p: GopherRepetition) -> list[_Limit]:
    top = sorted(_Limit(int(n), s, True) for n, s in p.max_top_ngram_chars.items())
    return top + sorted(_Limit(int(n), s, False) for n, s in p.max_dup_ngram_chars.items())


class _Repeats(NamedTuple):
    """The n-grams that occur at least twice in a document, of many documents: int64 arrays.

    `chars` are the characters of the n-gram, `count` how often it occurs.
    """

    document: np.ndarray
    n: np.ndarray
    chars: np.ndarray
    count: np.ndarray


def _may_repeat(documents: list[Tokens], sizes: list[int], p: GopherRepetition) -> np.ndarray:
    """Which documents `_repeated_grams` has to examine: bool (documents,); it finds nothing in the others.

    One sort of the n-grams of all documents gives bounds, also for longer n-grams: one that is repeated begins with a
    shorter one that is, and what they cover together is covered by the shorter ones, too.

    Args:
        documents: up to `MAX_DOCUMENTS`.
        sizes: the characters of each.
    """
    if not documents:
        return np.zeros(0, bool)
    numbers, lengths = zip(*numbered(documents), strict=True)
    word = np.array([x.max(initial=0) for x in lengths], np.int64)  # the longest one
    size = np.array(sizes, np.int64)
    count = np.array([d.count for d in documents], np.int64)
    known = _Repeats(*np.empty((4, 0), np.int64))
    counted, found = np.zeros((2, len(documents)), bool)
    for limit in _limits(p):
        unsure = ~counted | _over(limit, known, word, size)
        which = np.flatnonzero(unsure & (count >= limit.n) & ~found)
        if len(which):
            others = ~np.isin(known.document, which)
            new = _repeats([numbers[i] for i in which], [lengths[i] for i in which], limit.n)
            new = new._replace(document=which[new.document])
            known = _Repeats(*(np.r_[a[others], b] for a, b in zip(known, new, strict=True)))
            counted[which] = True
            found[which] = _over(limit, known, word, size)[which]
    return found


def _over(limit: _Limit, known: _Repeats, word: np.ndarray, size: np.ndarray) -> np.ndarray:
    """The documents whose bound is above the limit: bool (documents,)."""
    if limit.top:
        chars = known.chars + (limit.n - known.n) * word[known.document]
        bound = np.zeros(len(size), np.int64)
        np.maximum.at(bound, known.document, known.count * (chars + limit.n - 1))
    else:
        bound = np.bincount(known.document, (known.count - 1) * known.chars, len(size))
    return bound > limit.share * size * _LESS


def _repeats(documents: list[np.ndarray], lengths: list[np.ndarray], n: int) -> _Repeats:
    """The repeated n-grams of documents, which are numbered from 0.

    A key has the number of the document in its upper 12 bits and the characters of the n-gram in its lower ones, with
    40 bits of its hash between: a few n-grams may seem to be repeated that are not.
    """
    together, chars = np.concatenate(documents).astype(np.uint64), np.concatenate(lengths)
    grams = together[: len(together) - n + 1] * GAMMA
    for k in range(1, n):  # overflow is intended
        grams = (grams + together[k : k + len(grams)]) * GAMMA
    ends = np.zeros(len(chars) + 1, np.int64)
    np.cumsum(chars, out=ends[1:])
    chars = np.minimum(ends[n:] - ends[:-n], _LONG).astype(np.uint64)
    places = np.repeat(np.arange(len(documents), dtype=np.uint64), [len(numbers) for numbers in documents])
    inside = places[: len(grams)] == places[n - 1 :]  # the others end in a later document
    keys = np.sort((places[: len(grams)] << np.uint64(52) | grams >> np.uint64(24) << np.uint64(12) | chars)[inside])
    again = np.flatnonzero(keys[1:] == keys[:-1])
    found, more = np.unique(keys[again], return_counts=True)
    chars = (found & np.uint64(_LONG)).astype(np.int64)
    chars[chars == _LONG] = np.iinfo(np.int32).max  # of that length or more
    return _Repeats((found >> np.uint64(52)).astype(np.int64), np.full(len(found), n, np.int64), chars, more + 1)


def _repeated_grams(tokens: Tokens, size: int, p: GopherRepetition) -> Finding | None:
    """The rules on n-grams. An n-gram cannot occur more often than the (n-1)-gram it begins with: most documents need
    only two sorts.

    Args:
        size: characters of the document.
    """
    ((of_tokens, chars),) = numbered([tokens])
    numbers = mix(of_tokens)
    ends = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(chars, out=ends[1:])
    grams, at = numbers, 1
    most = len(numbers)  # how often one n-gram can occur
    for n, share, top in _limits(p):
        if n > len(numbers) or most == 1:
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
_PHRASES = ("lorem ipsum", "javascript", "cookie", *(x for x in (*_POLICY, *_POLICY_ZH) if "cookie" not in x))
# It begins with a set of characters, which are searched for many times as fast as something behind or ahead.
_SENTENCE = re.compile(
    r"[.!?。！？](?:(?:(?<=\.)(?<![.\s][A-Za-z]\.)(?<!\b(?:Mr|Dr|St|vs|No)\.)(?<!\b(?:Mrs|etc)\.)\.*|(?<=[!?])[!?]*)"
    r"(?=[\"'”’)\]]*(?:\s|$))|(?<=[。！？])[。！？]*)"
)


def c4(text: str, p: C4) -> tuple[str, Finding | None]:
    """Raffel et al. 2020, section 2.2: (the text without the lines that are dropped, finding)."""
    sentences = 0
    kept = []
    lower = "" if "[" in text else text.lower()  # of a text without citations, whose removal joins what is around them
    search = not lower or any(x in lower for x in _PHRASES)
    for raw in text.splitlines():
        whole = raw.strip()
        line = _CITATION.sub("", whole) if "[" in whole else whole
        if p.terminal_punctuation and (not line.endswith(_ENDS) or line.endswith("...")):
            continue
        if len(whole) > p.max_word_length > 0 and not spaceless(whole) and _longest_run(whole) > p.max_word_length:
            continue
        words = len(whole.split(None, p.min_words_per_line))  # more need not be counted
        if words < p.min_words_per_line and words + spaceless(line) - 1 < p.min_words_per_line:
            continue
        lower = line.lower() if search else ""
        if p.drop_lorem_ipsum and "lorem ipsum" in lower:
            return text, Finding("drop_lorem_ipsum", 1, 0)
        if p.drop_javascript and "javascript" in lower:
            continue
        if p.drop_curly_bracket and "{" in line:
            return text, Finding("drop_curly_bracket", 1, 0)
        if p.drop_policy and any(x in lower for x in (*_POLICY, *_POLICY_ZH)):
            continue
        if sentences < p.min_sentences:  # more need not be counted
            sentences += max(1, len(_SENTENCE.findall(line)) + (not _ended(line)))
        kept.append(line)
    if sentences < p.min_sentences:
        return text, Finding("min_sentences", sentences, p.min_sentences)
    return "\n".join(kept).strip(), None


def _longest_run(line: str) -> int:
    return max(map(len, line.split()))


def _ended(line: str) -> bool:
    return line.rstrip("\"'”’)]」』").endswith((".", "!", "?", "。", "！", "？"))


_STOPS = tuple(".!?…。！？؟۔।॥።။។\"'”’」』;；")


def fineweb(text: str, p: FineWeb) -> Finding | None:
    """Penedo et al. 2024, section 3.6. A character of a script without spaces counts as two letters."""
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
    newlines = text.count("\n")
    if newlines / max(len(text.split()), 1) > p.max_newline_ratio:  # a run of characters is at least one token
        ratio = newlines / max(read_tokens([text])[0].count, 1)
        if ratio > p.max_newline_ratio:
            return Finding("max_newline_ratio", ratio, p.max_newline_ratio)
    return None
