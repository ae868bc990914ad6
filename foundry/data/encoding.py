"""Bytes to text that every later stage can write again as UTF-8.

JSON escapes may hold lone surrogates, files may hold bytes of another encoding: both would raise far from their cause.
They are mended here, and the caller learns that they were. Files with the byte order mark of UTF-16 or UTF-32 are read
through `Utf8`, so that every reader sees UTF-8.
"""

from __future__ import annotations

import codecs
import re
from typing import Any

_HIGH = bytes(range(0x80, 0x100))
# What `surrogateescape` does not use for a raw byte.
_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")


def decode(raw: bytes) -> tuple[str, bool]:
    """(text, whether it had to be repaired).

    Bytes that are not UTF-8 are read as Windows-1252 if no part of them is UTF-8 beyond ASCII and at most a quarter are
    beyond ASCII (Western text); else what cannot be read becomes U+FFFD, which the symbol rule counts.
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
        return decode(_LONE.sub("\ufffd", text).encode("utf-8", "surrogateescape"))[0], True


def wide_encoding(head: bytes) -> str | None:
    """utf-32 or utf-16, if the first four bytes begin with its byte order mark."""
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    return None


class Utf8:
    """A stream of UTF-16 or UTF-32 with a byte order mark, read as UTF-8; what cannot be decoded becomes U+FFFD."""

    def __init__(self, stream: Any, encoding: str) -> None:
        self._stream = stream
        self._decode = codecs.getincrementaldecoder(encoding)("replace").decode
        self._head = b""

    def read(self, n: int) -> bytes:
        """At most `n` bytes; none at the end alone."""
        while not self._head:
            data = self._stream.read(n)
            self._head = self._decode(data, final=not data).encode("utf-8")
            if not data:
                break
        out, self._head = self._head[:n], self._head[n:]
        return out
