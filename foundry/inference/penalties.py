"""What a request has seen so far, and the changes of logits that depend on it.

A token is added in constant time; a row of logits is changed only at the tokens that were seen.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from foundry.tokenizers import Tokenizer

Floats = NDArray[np.float32]


class Counts:
    """How often each token occurred in the output, and which tokens occurred in prompt or output.

    Attributes:
        ids: int64 (M,), every token that occurred, once.
        output: float32 (M,), how often it occurred in the output.
    """

    def __init__(self, prompt: Iterable[int]) -> None:
        unique = np.fromiter(set(prompt), dtype=np.int64)
        self._place = {int(token): i for i, token in enumerate(unique)}
        self._ids = np.concatenate([unique, np.empty(64, dtype=np.int64)])
        self._output = np.zeros(len(self._ids), dtype=np.float32)

    @property
    def ids(self) -> NDArray[np.int64]:
        return self._ids[: len(self._place)]

    @property
    def output(self) -> Floats:
        return self._output[: len(self._place)]

    def accept(self, token: int) -> None:
        """Counts one more token of the output."""
        place = self._place.setdefault(token, len(self._place))
        if place == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty_like(self._ids)])
            self._output = np.concatenate([self._output, np.zeros_like(self._output)])
        self._ids[place] = token
        self._output[place] += 1

    def copy(self) -> Counts:
        new = copy.copy(self)
        new._place, new._ids, new._output = self._place.copy(), self._ids.copy(), self._output.copy()
        return new

    def penalise(self, logits: Floats, repetition: float, presence: float, frequency: float) -> None:
        """Changes logits (V,) in place: the repetition penalty first (arXiv:1909.05858), then those of OpenAI."""
        ids = self.ids
        scores = logits[ids]
        if repetition != 1:
            by = np.float32(repetition)
            scores = np.where(scores < 0, scores * by, scores / by)
        if presence or frequency:
            output = self.output
            scores -= np.float32(presence) * (output > 0) + np.float32(frequency) * output
        logits[ids] = scores


def forms_of(word: str, tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    """The ids of a word at the beginning of a text and after a space: bad words for `Sampling`.

    A model may still spell the word in other pieces, or write it in another case.
    """
    return sorted({tuple(tokenizer.encode(form)) for form in (word, f" {word.lstrip(' ')}")})


class BadWords:
    """Finds the tokens that would complete a sequence which must not occur.

    Args:
        words: sequences of at least one token.
        prompt: a word may begin in it.
    """

    def __init__(self, words: Iterable[tuple[int, ...]], prompt: list[int]) -> None:
        self.always = sorted({word[0] for word in words if len(word) == 1})
        self._after: dict[tuple[int, ...], list[int]] = {}  # last tokens of a word by all tokens before it
        for word in words:
            if len(word) > 1:
                self._after.setdefault(word[:-1], []).append(word[-1])
        self._lengths = sorted({len(before) for before in self._after})
        self._tail = prompt[-self._lengths[-1] :] if self._lengths else []

    def accept(self, token: int) -> None:
        if self._lengths:
            self._tail = [*self._tail[1 - self._lengths[-1] :], token] if self._lengths[-1] > 1 else [token]

    def copy(self) -> BadWords:
        return copy.copy(self)  # the tail is replaced, never changed

    def completing(self) -> list[int]:
        """The tokens that are not allowed now, besides those of words of one token."""
        tails = (tuple(self._tail[-n:]) for n in self._lengths)
        return [token for tail in tails for token in self._after.get(tail, ())]
