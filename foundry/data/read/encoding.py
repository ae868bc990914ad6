"""Bytes to text that every later stage can write again as UTF-8.

JSON escapes may contain lone surrogates, files bytes of another encoding: both would raise far from their cause.
They are repaired here, and the caller learns of it. Files in an encoding that their source names, or with the byte
order mark of UTF-16 or UTF-32, are read through `Utf8`, so that every reader sees UTF-8.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

SAMPLE = 4096  # bytes that an encoding is guessed from
_HIGH = bytes(range(0x80, 0x100))
# What `surrogateescape` does not use for a raw byte.
_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def decode(raw: bytes) -> tuple[str, bool]:
    """(text, whether it had to be repaired).

    Bytes that are not UTF-8 are read as Windows-1252 if no part of them is UTF-8 beyond ASCII and at most a quarter is
    beyond ASCII (Western text); otherwise what cannot be read becomes U+FFFD, which the symbol rule counts.
    """
    try:
        return raw.decode("utf-8"), False
    except UnicodeDecodeError:
        high = len(raw) - len(raw.translate(None, _HIGH))
        if 4 * high <= len(raw) and raw.decode("utf-8", "ignore").isascii():
            return raw.decode("cp1252", "replace"), True
        return raw.decode("utf-8", "replace"), True


def repair(text: str) -> tuple[str, bool]:
    """The same for JSON's or `surrogateescape`'s text: escaped bytes are decoded, lone surrogates become U+FFFD."""
    try:
        text.encode("utf-8")
        return text, False
    except UnicodeEncodeError:
        return decode(as_bytes(text))[0], True


def as_bytes(text: str) -> bytes:
    """JSON's or `surrogateescape`'s text as the bytes that it came from."""
    return _LONE.sub("\ufffd", text).encode("utf-8", "surrogateescape")


def foreign(raw: bytes) -> bytes:
    """A piece of the bytes to guess their encoding from, which begins near the first that is not ASCII."""
    found = re.search(rb"[\x00\x80-\xff]", raw)
    start = max(0, found.start() - 64) & ~1 if found else 0  # even: UTF-16 has two bytes for each character
    return raw[start : start + SAMPLE]


def guess_encoding(sample: bytes) -> str | None:
    """The encoding that bytes are likely in, by a name that Python knows; None for UTF-8 and where nothing is likely.

    UTF-16 without a byte order mark has zero bytes, in its line ends at least, that are all at even or all at odd
    places; everything else is left to uchardet.
    """
    from resiliparse.parse.encoding import detect_encoding

    sample = sample[: len(sample) & ~1]
    even, odd = sample[::2].count(0), sample[1::2].count(0)
    if even or odd:
        found = "utf-16-le" if not even else "utf-16-be" if not odd else None
    elif _reads(sample, "utf-8"):
        found = None
    else:
        found = detect_encoding(sample, html5_compatible=False)
    return found if found and _reads(sample, found) else None


def _reads(sample: bytes, encoding: str) -> bool:
    """Whether all of it is in that encoding, except for a character at its end that may be cut."""
    try:
        codecs.getincrementaldecoder(encoding)().decode(sample)
    except (UnicodeDecodeError, LookupError):
        return False
    return True


def wide_encoding(head: bytes) -> str | None:
    """utf-32 or utf-16, if the first four bytes begin with its byte order mark."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return None


class Utf8:
    """A stream in another encoding, read as UTF-8; what cannot be decoded becomes U+FFFD."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder(encoding)("replace").decode
        self._head = b""

    def read(self, n: int) -> bytes:
        """At most `n` bytes; empty only at the end."""
        while not self._head:
            data = self._stream.read(n)
            self._head = self._decode(data, final=not data).encode("utf-8")
            if not data:
                break
        out, self._head = self._head[:n], self._head[n:]
        return out
