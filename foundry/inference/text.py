"""The text of an answer as its tokens come: complete characters, nothing of a stop text, and all of the end.

A piece of text that may be the beginning of a stop text is held back until the next tokens decide.
"""

from __future__ import annotations

from foundry.tokenizers import Tokenizer


class AnswerText:
    """Turns the tokens of one answer into parts of its text.

    The parts that `add` returns, and at last `end`, join to the text of the answer. The bytes of a character that the
    answer does not complete are left out.

    Args:
        stop: texts that end the answer; the one that begins first does, and of those that begin there the first in
            this order.

    Attributes:
        found: the stop text that ended the answer.
    """

    def __init__(self, tokenizer: Tokenizer, stop: tuple[str, ...] = ()) -> None:
        self._characters, self._stop = tokenizer.stream(), stop
        self._held = ""
        self.found: str | None = None

    def add(self, token: int, watch: bool = True) -> str:
        """The text that a token completes; often empty. After a stop text was found, no more tokens are expected.

        Args:
            watch: look for stop texts that begin with this token or later ones.
        """
        piece = self._characters.add(token)
        if not self._stop or not piece:
            return piece
        if not watch:
            return piece
        text = self._held + piece
        begins = [(at, i) for i, stop in enumerate(self._stop) if (at := text.find(stop)) >= 0]
        if begins:
            at, i = min(begins)
            self._held, self.found = "", self._stop[i]
            return text[:at]
        keep = max(_beginning(text, stop) for stop in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """What was held back, when the answer ends without a stop text."""
        rest, self._held = self._held, ""
        return rest


def _beginning(text: str, stop: str) -> int:
    """How many characters at the end of a text are the beginning of a stop text, which does not occur in it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
