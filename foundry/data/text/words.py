"""The words of a document, in the two forms that cleaning and evaluation need.

`gram_words` are the words of n-grams, by which duplicates and evaluation text are found: in lower case, without
punctuation. `tokens` are what the published quality rules count: words as written, and every punctuation mark as one
token. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character counts as
one word in both forms.
"""

from __future__ import annotations

import re
from itertools import chain

NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs do not match \w in Python; they belong to their words.
_LETTERS = rf"[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|[\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff])*"
_GRAM_WORD = re.compile(rf"[{NO_SPACES}]|{_LETTERS}")
_WORD = re.compile(r"\w+")  # the same for text without such scripts and signs, five times as fast
_NUMBER = r"[0-9]+(?:[.,:/–][0-9]+)*\w*"
_SHORT = r"(?:\b[A-Za-z]\.)+"  # U.S., e.g., an initial
_TOKEN = re.compile(rf"[{NO_SPACES}]|{_NUMBER}|{_SHORT}|['’]?{_LETTERS}|\.\.+|[^\w\s]")
_PLAIN_TOKEN = re.compile(rf"{_NUMBER}|{_SHORT}|['’]?\w+|\.\.+|[^\w\s]")
_BEYOND_LATIN = re.compile("[^\x00-\u02ff\u2010-\u2027]")
_CHARACTER = re.compile(f"[{NO_SPACES}]")


def _plain(text: str) -> bool:
    return text.isascii() or not _BEYOND_LATIN.search(text)


def gram_words(text: str) -> list[str]:
    """The words of a text for n-grams: in lower case; in scripts without spaces, every character."""
    text = text.lower()
    return (_WORD if _plain(text) else _GRAM_WORD).findall(text)


class _Pieces(dict):
    """The tokens of a run of characters without white space; each distinct short run is split only once."""

    def __missing__(self, run: str) -> tuple[str, ...]:
        pieces = tuple((_PLAIN_TOKEN if _plain(run) else _TOKEN).findall(run))
        if len(run) <= 32:  # a Chinese sentence is one long run that hardly ever occurs again
            if len(self) >= 1 << 18:
                self.clear()
            self[run] = pieces
        return pieces


_pieces = _Pieces()


def tokens(text: str) -> list[str]:
    """Words and punctuation marks; the second half of a contraction is a token (`don` `'t`), and so is `...`."""
    return list(chain.from_iterable(map(_pieces.__getitem__, text.split())))


def spaceless(text: str) -> int:
    """The number of characters of scripts without spaces."""
    return 0 if _plain(text) else len(_CHARACTER.findall(text))


# Frequent function words: for English those of Gopher, for other languages words that running text can hardly avoid.
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
    """The stop words of a language, or None if there is no list.

    For an unknown language (`und`), the list of Chinese or Japanese if a third of the text is in such a script.
    """
    if lang == "und" and 3 * spaceless(text) > len(text):
        lang = "ja" if re.search("[\u3040-\u30ff]", text) else "zh"
    return STOP_WORDS.get(lang.split("-")[0])
