"""A document's words, counted once for all quality rules.

Units are what duplicates and n-grams of evaluation sets are found by: words in lower case, without punctuation. Tokens are
what the published quality rules count: words as written, and every punctuation mark by itself. In scripts that write no
spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese) a character is the word-like unit of both.
"""

from __future__ import annotations

import re
from itertools import chain

NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs are no \w to Python; they belong to their words.
_LETTERS = rf"[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])*"
_UNIT = re.compile(rf"[{NO_SPACES}]|{_LETTERS}")
_WORD = re.compile(r"\w+")  # the same where neither of the two occurs, five times as fast
_NUMBER = r"[0-9]+(?:[.,:/–][0-9]+)*\w*"
_SHORT = r"(?:\b[A-Za-z]\.)+"  # U.S., e.g., an initial
_TOKEN = re.compile(rf"[{NO_SPACES}]|{_NUMBER}|{_SHORT}|['’]?{_LETTERS}|\.\.+|[^\w\s]")
_PLAIN_TOKEN = re.compile(rf"{_NUMBER}|{_SHORT}|['’]?\w+|\.\.+|[^\w\s]")
_BEYOND_LATIN = re.compile("[^\x00-\u02ff\u2010-\u2027]")
_CHARACTER = re.compile(f"[{NO_SPACES}]")


def _plain(text: str) -> bool:
    return text.isascii() or not _BEYOND_LATIN.search(text)


def units(text: str) -> list[str]:
    """Words in lower case, or single characters of scripts without spaces."""
    text = text.lower()
    return (_WORD if _plain(text) else _UNIT).findall(text)


class _Pieces(dict):
    """The tokens of a run of characters without white space; each distinct short one is cut once."""

    def __missing__(self, run: str) -> tuple[str, ...]:
        pieces = tuple((_PLAIN_TOKEN if _plain(run) else _TOKEN).findall(run))
        if len(run) <= 32:  # a sentence of Chinese comes once
            if len(self) >= 1 << 18:
                self.clear()
            self[run] = pieces
        return pieces


_pieces = _Pieces()


def tokens(text: str) -> list[str]:
    """Words and punctuation marks; a contraction's second half is a token (`don` `'t`), as is a run of full stops."""
    return list(chain.from_iterable(map(_pieces.__getitem__, text.split())))


def spaceless(text: str) -> int:
    """How many characters are of scripts without spaces."""
    return 0 if _plain(text) else len(_CHARACTER.findall(text))


# The commonest function words: Gopher's own for English; of other languages, words that running text can hardly avoid.
STOP_WORDS = {
    "en": {"the", "be", "to", "of", "and", "that", "have", "with"},
    "zh": set("的了是在不有和人這这中大為为上個个我他也之其而以於于"),
    "ja": set("のにはをたがでてとしれさ"),
    "de": {"der", "die", "das", "und", "in", "zu", "den", "von", "mit", "ist", "nicht", "ein", "eine"},
    "fr": {"le", "la", "les", "de", "des", "et", "à", "un", "une", "est", "que", "dans", "pour"},
    "es": {"el", "la", "los", "de", "y", "que", "en", "un", "una", "es", "por", "con", "para"},
    "it": {"il", "la", "di", "e", "che", "un", "una", "per", "in", "del", "non", "con"},
    "pt": {"o", "a", "os", "de", "e", "que", "um", "uma", "do", "da", "em", "não", "para"},
    "nl": {"de", "het", "een", "en", "van", "in", "is", "dat", "op", "te", "met", "niet"},
    "ru": {"и", "в", "не", "на", "что", "с", "как", "по", "это", "к", "но", "из"},
}


def stop_words(lang: str, text: str) -> set[str] | None:
    """The list of the language; where the language is unknown, that of Chinese or Japanese if the script says so."""
    if lang == "und" and 3 * spaceless(text) > len(text):
        lang = "ja" if re.search("[\u3040-\u30ff]", text) else "zh"
    return STOP_WORDS.get(lang.split("-")[0])
