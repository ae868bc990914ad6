"""The normal form of a text: mojibake repaired, one spelling for spaces, line ends and accents.

What changes and what does not:

- ftfy repairs wrongly decoded text and C1 controls. Curly quotes, ligatures and full-width letters are not changed.
- Markup is not treated here, see `markup.strip_html`.
- Every kind of space becomes a space, and runs of spaces inside a line become one; indentation is kept. At most one
  empty line in a row is kept.
- Control, bidirectional and zero-width characters are removed. Joiners are kept between non-ASCII letters, where
  scripts and emoji need them.
- U+2581 becomes a space: SentencePiece uses it for the space and could not decode it.
- NFC, not NFKC: ½, ² and ﬁ keep their meaning.
"""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from typing import Any

from foundry.data.text.words import is_printed

_LINE_ENDS = re.compile("\r\n?|[\v\f\x85\u2028\u2029]")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000\u2581]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufdd0-\ufdef"
    "\ufeff\ufff9-\ufffb\ufffe\uffff]"
)
_JOINERS = re.compile("(?<![^\x00-\x7f])[\u200c\u200d]+|[\u200c\u200d]+(?![^\x00-\x7f])")
_RUNS = re.compile(r"(?<=[^ \t\n])(?:[ \t]{2,}|\t)")
_TRAILING = re.compile(r"[ \t]+$", re.M)
_BLANK = re.compile(r"\n{3,}")


@cache
def _ftfy() -> tuple[Any, Any]:
    import ftfy

    repairs = ("unescape_html", "fix_latin_ligatures", "fix_character_width", "uncurl_quotes", "fix_line_breaks")
    off = dict.fromkeys((*repairs, "remove_control_chars", "explain"), False)
    return ftfy.fix_text, ftfy.TextFixerConfig(**off, normalization=None)


# A wrongly decoded character is two or more of the characters that single-byte encodings have (all below U+2C00), the
# last of which may have become a plain space; or it is a C1 control.
_SUSPECT = re.compile("[\x80-\u2bff\ufffd]{2}|[\xc2\xc3] |[\x80-\x9f]|\x1b")
_LINES_FOR_ASCII = b"\n" * 128 + bytes(range(128, 256))


def fix_mojibake(text: str) -> str:
    """Repairs text that was decoded wrongly (ftfy). Only lines with suspect characters are examined."""
    if not _is_suspect(text):
        return text
    fix, config = _ftfy()
    return "\n".join(fix(line, config) if _SUSPECT.search(line) else line for line in text.split("\n"))


def _is_suspect(text: str) -> bool:
    """Whether `_SUSPECT` matches anywhere. It is searched for in what is left without the ASCII characters."""
    if "\x1b" in text:
        return True
    if text.isascii():
        return False
    if "\xc2 " in text or "\xc3 " in text:
        return True
    runs = b"\n".join(text.encode("utf-8", "surrogatepass").translate(_LINES_FOR_ASCII).split())
    return _SUSPECT.search(runs.decode("utf-8", "surrogatepass")) is not None


def without_meta_space(text: str) -> str:
    """Replaces the one character that the tokenizer could not decode by a space: needed even if nothing else is
    repaired."""
    return text.replace("\u2581", " ").strip()


def normalize(text: str) -> str:
    """Line ends, spaces, invisible characters and NFC. It is idempotent."""
    # A printable text contains none of the spaces, line ends and invisible characters that the patterns look for.
    if not is_printed(text):
        text = _INVISIBLE.sub("", _SPACES.sub(" ", _LINE_ENDS.sub("\n", text)))
    text = text.replace("\u2581", " ")
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
        if "\u200c" in text or "\u200d" in text:
            text = unicodedata.normalize("NFC", _JOINERS.sub("", text))
    if "  " in text or "\t" in text:
        text = _RUNS.sub(" ", text)
    if " \n" in text or "\t\n" in text:
        text = _TRAILING.sub("", text)
    if "\n\n\n" in text:
        text = _BLANK.sub("\n\n", text)
    return text.strip()
