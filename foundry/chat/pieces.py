"""Tokens as they are read by a person: text, symbols, and whether a model learns to predict them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from foundry.tokenizers import Tokenizer

GREEN, DIM, RESET = "\x1b[32m", "\x1b[2m", "\x1b[0m"


class Piece(NamedTuple):
    """A token, or the tokens of one character.

    Attributes:
        text: what it means; the name of a symbol.
        symbol: whether it is a control symbol.
        learnt: whether a model learns to predict it.
    """

    text: str
    symbol: bool
    learnt: bool


def pieces(tokenizer: Tokenizer, tokens: Sequence[int], learnt: Sequence[bool]) -> Iterator[Piece]:
    """The pieces of a conversation; their texts and symbols together are the conversation."""
    stream = tokenizer.stream()
    for token, mask in zip(tokens, learnt, strict=True):
        token = int(token)
        if tokenizer.is_control(token):
            if rest := stream.end():
                yield Piece(rest, False, bool(mask))
            stream = tokenizer.stream()
            yield Piece(tokenizer.piece(token), True, bool(mask))
        elif text := stream.add(token):
            yield Piece(text, False, bool(mask))
    if rest := stream.end():
        yield Piece(rest, False, False)


def on_terminal(found: Iterable[Piece], colours: bool) -> str:
    """What is learnt in green between ⟦ and ⟧, the rest dim; without colours only the brackets say it."""
    out, learning = [], False
    for piece in found:
        if piece.learnt != learning:
            out.append("⟦" if piece.learnt else "⟧")
            learning = piece.learnt
        out.append(f"{GREEN if piece.learnt else DIM}{piece.text}{RESET}" if colours else piece.text)
    return "".join(out) + ("⟧" if learning else "")
