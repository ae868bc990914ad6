"""Bytes to text that every later stage can write again as UTF-8.

JSON escapes may hold lone surrogates, files may hold bytes of another encoding: both would raise far from their cause.
They are mended here, and the caller learns that they were.
"""

from __future__ import annotations

import re

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
