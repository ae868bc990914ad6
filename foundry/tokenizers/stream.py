"""From tokens to text, piece by piece, without ever cutting a character.

SentencePiece spells a rare character in up to four byte tokens. A stream of text may show them only when the
character is whole or can no longer become one.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foundry.tokenizers.tokenizer import Tokenizer


class TextStream:
    """Decodes tokens as they come.

    What `add` and at last `end` give joins to `tokenizer.decode(tokens)`. Bytes that can no longer form a character are
    U+FFFD, as SentencePiece has it. Each token costs the same, however long the text.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []  # byte tokens that may still become a character: at most three

    def add(self, token: int) -> str:
        """Text that this token makes certain; often empty while bytes come in."""
        self._pending.append(token)
        if self._tokenizer.is_byte(token):
            ready = len(self._pending) - _unfinished(bytes(self._byte(t) for t in self._pending))
        else:
            ready = len(self._pending)
        done, self._pending = self._pending[:ready], self._pending[ready:]
        return self._tokenizer.decode(done) if done else ""

    def end(self) -> str:
        """What is left of a character whose last bytes never came: U+FFFD for each byte, or nothing."""
        rest, self._pending = self._pending, []
        return self._tokenizer.decode(rest) if rest else ""

    def _byte(self, token: int) -> int:
        return int(self._tokenizer.piece(token)[3:5], 16)  # <0xAB>


def _unfinished(data: bytes) -> int:
    """How many bytes at the end may still become a character with further ones (0 to 3)."""
    for n in range(min(3, len(data)), 0, -1):
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            if not decoder.decode(data[-n:]):
                return n
        except UnicodeDecodeError:
            continue
    return 0
