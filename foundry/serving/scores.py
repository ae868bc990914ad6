"""Tokens as text, and their log-probabilities as the two kinds of responses have them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from foundry.serving.protocol import ChatLogprobs, TextLogprobs, TokenLogprob, TopLogprob

if TYPE_CHECKING:
    from foundry.inference.request import Scored
    from foundry.tokenizers import Tokenizer

LEADING = 0xC2  # the smallest byte that begins a character of several bytes
LOWEST = -9999.0  # JSON has no infinity; the OpenAI API uses this number


class TokenTexts:
    """The text and the bytes of every token of a vocabulary.

    A byte that is only a part of a character is written `bytes:\\xe2`, as the OpenAI API does. A control symbol has its
    name and no bytes.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, tuple[str, list[int] | None]] = {}

    def of(self, token: int) -> tuple[str, list[int] | None]:
        """(text, bytes) of a token."""
        if token not in self._known:
            self._known[token] = self._make(token)
        return self._known[token]

    def _make(self, token: int) -> tuple[str, list[int] | None]:
        piece = self._tokenizer.piece(token)
        if self._tokenizer.is_control(token) or token == 0:
            return piece, None
        if self._tokenizer.is_byte(token):
            byte = int(piece[3:5], 16)  # <0xAB>
            return (chr(byte) if byte < 0x80 else f"bytes:\\x{byte:02x}"), [byte]
        text = self._tokenizer.text_of(token)
        return text, list(text.encode())


class TextScores:
    """Log-probabilities of one completion, in parts; it knows how far the text has come.

    Args:
        offset: characters of the choice's text before the first token.
    """

    def __init__(self, texts: TokenTexts, tokenizer: Tokenizer, offset: int = 0) -> None:
        self._texts, self._stream, self._offset = texts, tokenizer.stream(), offset

    def add(self, tokens: Iterable[Scored]) -> TextLogprobs:
        """The next part."""
        names: list[str] = []
        logprobs: list[float | None] = []
        tops: list[dict[str, float] | None] = []
        offsets: list[int] = []
        for token in tokens:
            name = self._texts.of(token.id)[0]
            top = {self._texts.of(i)[0]: _number(p) for i, p in reversed(token.top)}  # of two equal texts, the likelier
            if token.logprob is not None:
                top.setdefault(name, _number(token.logprob))
            names.append(name)
            logprobs.append(None if token.logprob is None else _number(token.logprob))
            tops.append(None if token.logprob is None else dict(sorted(top.items(), key=lambda item: -item[1])))
            offsets.append(self._place(token.id))
        return TextLogprobs(tokens=names, token_logprobs=logprobs, top_logprobs=tops, text_offset=offsets)

    def _place(self, token: int) -> int:
        """Where the text of the next token begins; for a part of a character, where the character begins."""
        text, data = self._texts.of(token)
        new = len(self._stream.add(token))
        self._offset += new
        if data is None or (len(data) == 1 and data[0] >= LEADING):  # no text, or its character is not complete yet
            return self._offset
        if len(data) == 1 and data[0] >= 0x80:
            return self._offset - min(new, 1)
        return self._offset - len(text)  # before it may be the remains of a character that it left incomplete


def chat_scores(texts: TokenTexts, tokens: Sequence[Scored]) -> ChatLogprobs:
    """Log-probabilities of an answer in a conversation."""
    content = []
    for token in tokens:
        text, data = texts.of(token.id)
        top = [_top(texts, i, p) for i, p in token.top]
        content.append(TokenLogprob(token=text, logprob=_number(token.logprob), bytes=data, top_logprobs=top))
    return ChatLogprobs(content=content)


def _top(texts: TokenTexts, token: int, logprob: float) -> TopLogprob:
    text, data = texts.of(token)
    return TopLogprob(token=text, logprob=_number(logprob), bytes=data)


def _number(logprob: float | None) -> float:
    return LOWEST if logprob is None else max(logprob, LOWEST)
