"""The words of a document, in the two forms that cleaning and evaluation need.

`gram_words` are the words of n-grams, by which duplicates and evaluation text are found: in lower case, without
punctuation. `tokens` are what the published quality rules count: words as written, and every punctuation mark as one
token. In scripts without spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) every character counts as
one word in both forms.
"""

from __future__ import annotations

import re

NO_SPACES = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\U00020000-\U0003ffff"
)
# Vowel signs do not match \w in Python; they belong to their words.
_SIGNS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0900-\u0dff"
_LETTERS = rf"[^\W{NO_SPACES}](?:[^\W{NO_SPACES}]|[{_SIGNS}])*"
_GRAM_WORD = re.compile(rf"[{NO_SPACES}]|{_LETTERS}")
_NUMBER = r"[0-9]+(?:[.,:/–][0-9]+)*\w*"
_SHORT = r"(?:\b[A-Za-z]\.)+"  # U.S., e.g., an initial
_TOKEN = re.compile(rf"[{NO_SPACES}]|{_NUMBER}|{_SHORT}|['’]?{_LETTERS}|\.\.+|[^\w\s]")
_PLAIN_TOKEN = re.compile(rf"{_NUMBER}|{_SHORT}|['’]?\w+|\.\.+|[^\w\s]")
_BEYOND_LATIN = re.compile("[^\x00-\u02ff\u2010-\u2027]")
_CHARACTER = re.compile(f"[{NO_SPACES}]")
_SPECIAL = re.compile(f"[{NO_SPACES}{_SIGNS}]")

_ASCII, _BEYOND = bytes(range(128)), bytes(range(128, 256))
_PRINTED = b"\n" + bytes(range(0x20, 0x7F))
_LOWER = _ASCII.lower() + _BEYOND
_APART = bytes(c if chr(c).isalnum() or c == ord("_") else 32 for c in _ASCII.lower()) + _BEYOND
_MAX_CHANGES = 16  # distinct characters beyond ASCII, each of which costs a pass over the text


def beyond_ascii(text: str) -> str:
    """The characters of a text that are not ASCII, in their order.

    In UTF-8, bytes from 128 on occur only in such characters. Two passes over bytes are many times as fast as a search
    in the text.
    """
    return text.encode("utf-8", "surrogatepass").translate(None, _ASCII).decode("utf-8", "surrogatepass")


def characters(data: bytes) -> int:
    """The number of characters of a text in UTF-8."""
    if data.isascii():
        return len(data)
    beyond = data.translate(None, _ASCII)
    return len(data) - len(beyond) + len(beyond.decode("utf-8", "surrogatepass"))


def is_printed(text: str) -> bool:
    """Whether a text contains only printable characters and line feeds: no other white space than these and spaces."""
    others = text.encode("utf-8", "surrogatepass").translate(None, _PRINTED)
    return others.decode("utf-8", "surrogatepass").isprintable()


def gram_words(text: str) -> list[str]:
    """The words of a text for n-grams: in lower case; in scripts without spaces, every character."""
    return spaced_words(text).decode("utf-8", "surrogatepass").split()


class _Changes(dict):
    """Character beyond ASCII → what becomes of it among spaced words; None if that depends on its neighbours."""

    def __missing__(self, c: str) -> str | None:
        lower = c.lower()
        if c == "\u03a3" or _SPECIAL.search(lower):  # the capital sigma has two lower cases
            change = None
        else:
            change = "".join(x if x.isalnum() else " " for x in lower)
        self[c] = change
        return change


_changes = _Changes()


def spaced_words(text: str) -> bytes:
    """The `gram_words` of a text with spaces between them, in UTF-8; it is many times as fast as making a list.

    They are the matches of `_GRAM_WORD`. Where neither a script without spaces nor a vowel sign occurs, they are the
    runs of letters and digits: it is enough to replace characters.
    """
    data = text.encode("utf-8", "surrogatepass")
    if text.isascii():
        return data.translate(_APART)
    changes = {c: _changes[c] for c in set(beyond_ascii(text))}
    if None in changes.values() or sum(c != new for c, new in changes.items()) > _MAX_CHANGES:
        text = text.lower()
        changes = {c: _changes[c] for c in set(beyond_ascii(text))}
        data = text.encode("utf-8", "surrogatepass")
    data = data.translate(_APART)
    if None in changes.values() or sum(c != new for c, new in changes.items()) > _MAX_CHANGES:
        runs, matches = data.decode("utf-8", "surrogatepass").split(), _GRAM_WORD.findall
        return " ".join(r if r.isascii() else " ".join(matches(r)) for r in runs).encode("utf-8", "surrogatepass")
    for c, new in changes.items():
        if c != new:
            data = data.replace(c.encode("utf-8", "surrogatepass"), new.encode("utf-8", "surrogatepass"))
    return data


def casefolded(text: str) -> bytes:
    """`text.casefold()` in UTF-8."""
    if text.isascii():
        return text.encode().translate(_LOWER)
    changes = [(c, new) for c in set(beyond_ascii(text)) if (new := c.casefold()) != c]
    if len(changes) > _MAX_CHANGES:
        return text.casefold().encode("utf-8", "surrogatepass")
    data = text.encode("utf-8", "surrogatepass").translate(_LOWER)
    for c, new in changes:
        data = data.replace(c.encode("utf-8", "surrogatepass"), new.encode("utf-8", "surrogatepass"))
    return data


def spaced_runs(text: str) -> str:
    """The text with no other white space than spaces."""
    return text.replace("\n", " ") if is_printed(text) else " ".join(text.split())


def squeezed(text: str) -> str:
    """The text with one space for each run of white space, and none at its ends."""
    text = spaced_runs(text)
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip(" ")


def tokens(text: str) -> list[str]:
    """Words and punctuation marks; the second half of a contraction is a token (`don` `'t`), and so is `...`."""
    plain = text.isascii() or not _BEYOND_LATIN.search(text)
    return (_PLAIN_TOKEN if plain else _TOKEN).findall(text)


def spaceless(text: str) -> int:
    """The number of characters of scripts without spaces."""
    return 0 if text.isascii() else len(_CHARACTER.findall(beyond_ascii(text)))


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
