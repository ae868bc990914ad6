"""Sampling of the next token of one request.

The order is that of transformers: logit bias; repetition, presence and frequency penalty; bad words; min_tokens; and,
unless the most likely token is taken, temperature; top-n-sigma; top-k; top-p; min-p; typical-p. Each filter sees the
candidates that the one before it left, with their probabilities as shares of these candidates. What `foundry.config.
sampling` calls off is skipped.

A choice is a function of the raw logits, of the tokens so far and of one number of the request's generator, uniform in
[0, 1): the token at which the cumulative probability exceeds it. `torch.multinomial` would draw one number per token of
the vocabulary. Greedy choices draw none. So the position in the generator's sequence is the number of tokens drawn.

The rows are float32 on the CPU, and the arithmetic is NumPy's: for vectors of this size its functions cost a tenth of
torch's calls, and use no threads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import GREEDY_BELOW, Sampling
from foundry.inference import filters
from foundry.inference.filters import Bools, Floats
from foundry.inference.penalties import BadWords, Counts
from foundry.inference.request import Matcher

LARGEST = 1e30  # no logit of a sound model is close to it
LOWEST = np.float32(-1e30)  # a score whose sum and square are finite, and whose weight is 0
BLOCK = 128  # candidates per partial sum of a draw


class Sampler:
    """Chooses the tokens of one request.

    Args:
        how: the parameters.
        prompt: its ids, which the repetition penalty and bad words regard.
        vocab_size: number of logits, V.
        generator: all random numbers come from it.
        end_ids: tokens that end the output: not allowed before `how.min_tokens`.
        barred: tokens that are never chosen.
        matcher: of a constraint.

    Raises:
        ConfigError: (a `ValueError`) if a parameter names a token outside the vocabulary.
    """

    def __init__(
        self,
        how: Sampling,
        prompt: Sequence[int],
        *,
        vocab_size: int,
        generator: torch.Generator,
        end_ids: Iterable[int] = (),
        barred: Iterable[int] = (),
        matcher: Matcher | None = None,
    ) -> None:
        if how.largest_id >= vocab_size:
            raise ConfigError(
                f"logit_bias, bad_words and top_p_reset_ids must name token ids in [0, {vocab_size}), "
                f"got {how.largest_id}"
            )
        self.how, self.vocab_size, self.generator, self.matcher = how, vocab_size, generator, matcher
        self.count = 0  # tokens of the output
        self.top_p = how.top_p
        penalised = how.repetition_penalty != 1 or how.presence_penalty or how.frequency_penalty
        self._counts = Counts(prompt if how.repetition_penalty != 1 else ()) if penalised else None
        self._bad_words = BadWords(how.bad_words, list(prompt)) if how.bad_words else None
        self._end_ids = np.array(sorted(set(end_ids)), dtype=np.int64)
        never = {*barred, *(self._bad_words.always if self._bad_words else ())}
        self._never = np.array(sorted(never), dtype=np.int64)
        self._bias_ids = np.array([token for token, _ in how.logit_bias], dtype=np.int64)
        self._bias = np.array([bias for _, bias in how.logit_bias], dtype=np.float32)
        self._reset_ids = frozenset(how.top_p_reset_ids)

    def choose(self, logits: Tensor) -> int:
        """The next token for raw logits (V,). `accept` it before the next call.

        Raises:
            FoundryError: if a logit is NaN or infinite, which damaged weights give, or no token is allowed.
        """
        scores = self._processed(logits)
        if self.how.greedy:
            return int(scores.argmax())
        ids, weights = self._candidates(scores)
        place = draw(weights, self.generator)
        return place if ids is None else int(ids[place])

    def distribution(self, logits: Tensor) -> Tensor:
        """The probabilities that `choose` draws from, float32 (V,). A greedy one is 1 at one token.

        Raises:
            FoundryError: as `choose`.
        """
        scores = self._processed(logits)
        p = np.zeros(self.vocab_size, dtype=np.float32)
        if self.how.greedy:
            p[scores.argmax()] = 1.0
        else:
            ids, weights = self._candidates(scores)
            p[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
        return torch.from_numpy(p)

    def accept(self, token: int) -> None:
        """Takes a token as the next one of the output."""
        self.count += 1
        if self.how.top_p_decay < 1:
            decayed = max(self.top_p * self.how.top_p_decay, self.how.top_p_min)
            self.top_p = self.how.top_p if token in self._reset_ids else decayed
        for part in (self._counts, self._bad_words, self.matcher):
            if part is not None:
                part.accept(token)

    def copy(self) -> Sampler:
        """An independent sampler, for tokens that may be taken back. It shares the generator."""
        new = copy.copy(self)
        new._counts, new._bad_words, new.matcher = (
            part if part is None else part.copy() for part in (self._counts, self._bad_words, self.matcher)
        )
        return new

    def _processed(self, logits: Tensor) -> Floats:
        """The logits after everything that comes before the temperature; what is not allowed is minus infinity."""
        row = as_row(logits)
        scores = row.copy()
        how = self.how
        if len(self._bias_ids):
            scores[self._bias_ids] += self._bias
        if self._counts is not None:
            self._counts.penalise(scores, how.repetition_penalty, how.presence_penalty, how.frequency_penalty)
        if len(self._never):
            scores[self._never] = -np.inf
        if self._bad_words is not None and (completing := self._bad_words.completing()):
            scores[completing] = -np.inf
        if self.matcher is not None:
            self._constrain(scores)
        elif self.count < how.min_tokens:
            scores[self._end_ids] = -np.inf
        if not abs(scores.max()) < LARGEST:  # NaN and infinity are larger than every number
            raise self._impossible(row)
        return scores

    def _constrain(self, scores: Floats) -> None:
        """Allows the end only where the constraint is met; there, min_tokens yields if nothing else is allowed."""
        end = scores[self._end_ids]
        scores[~self.matcher.allowed().numpy()] = -np.inf
        scores[self._end_ids] = -np.inf
        if self.matcher.complete and (self.count >= self.how.min_tokens or scores.max() == -np.inf):
            scores[self._end_ids] = end

    def _impossible(self, row: Floats) -> FoundryError:
        if not abs(row.max()) < LARGEST:
            return FoundryError(
                "the model's logits are NaN or infinite: its weights are damaged; restore them or train the model again"
            )
        return FoundryError(
            "no token is allowed: bad_words, min_tokens and the constraint together exclude every token; relax one"
        )

    def _candidates(self, scores: Floats) -> tuple[NDArray[np.int64] | None, Floats]:
        """The candidates and their weights, proportional to their probabilities. None: all of the vocabulary."""
        how = self.how
        ids = None
        if how.dynatemp_range or how.top_n_sigma or how.typical_p < 1 or self.matcher is not None:
            ids = np.flatnonzero(scores > -np.inf)
            scores = scores[ids]
        if (temperature := self._temperature(scores)) < GREEDY_BELOW:
            ids = scores.argmax(keepdims=True) if ids is None else ids[scores.argmax(keepdims=True)]
            return ids, np.ones(1, dtype=np.float32)
        scores = scores - scores.max()  # first, so that the division cannot overflow for likely tokens
        if temperature != 1:
            scores /= np.float32(temperature)
        if ids is not None:
            np.maximum(scores, LOWEST, out=scores)
        if how.top_n_sigma:
            ids, scores = _kept(filters.top_n_sigma(scores, how.top_n_sigma), ids, scores)
        if 0 < how.top_k < len(scores):
            ids, scores = _kept(filters.top_k(scores, how.top_k), ids, scores)
        weights = np.exp(scores)
        if self.top_p < 1:
            ids, scores, weights = _kept(filters.top_p(weights, self.top_p), ids, scores, weights)
        if how.min_p:
            ids, scores, weights = _kept(filters.min_p(weights, how.min_p), ids, scores, weights)
        if how.typical_p < 1:
            ids, weights = _kept(filters.typical_p(scores, weights, how.typical_p), ids, weights)
        return ids, weights

    def _temperature(self, scores: Floats) -> float:
        how = self.how
        if not how.dynatemp_range:
            return how.temperature
        low, high = max(0.0, how.temperature - how.dynatemp_range), how.temperature + how.dynatemp_range
        return low + (high - low) * filters.entropy_share(scores) ** how.dynatemp_exponent


def _kept(keep: Bools, ids: NDArray[np.int64] | None, *values: Floats):
    places = np.flatnonzero(keep)
    return places if ids is None else ids[places], *(value[places] for value in values)


def as_row(logits: Tensor) -> Floats:
    """Logits (V,) of any device and type as a float32 array; not a copy if they are that already."""
    return logits.detach().to("cpu", torch.float32).numpy()


def draw(weights: Floats, generator: torch.Generator) -> int:
    """The index of one of the weights, each with a probability proportional to it.

    One uniform number of 53 bits is drawn, and sums are float64.

    Args:
        weights: (N,), not negative, at least one of them positive.
    """
    value = uniform(generator)
    if len(weights) > 2 * BLOCK:  # sums of blocks are fast, a cumulative sum is not
        cumulative = np.cumsum(np.add.reduceat(weights, np.arange(0, len(weights), BLOCK), dtype=np.float64))
        value *= cumulative[-1]
        block = _first_above(cumulative, value)
        value -= cumulative[block - 1] if block else 0.0
        start = block * BLOCK
        return start + _first_above(np.cumsum(weights[start : start + BLOCK], dtype=np.float64), value)
    cumulative = np.cumsum(weights, dtype=np.float64)
    return _first_above(cumulative, value * cumulative[-1])


def uniform(generator: torch.Generator) -> float:
    """A random number in [0, 1) with 53 bits."""
    return float(torch.rand((), generator=generator, dtype=torch.float64))


def _first_above(cumulative: NDArray[np.float64], value: float) -> int:
    """The first place with a cumulative sum above a value; the last with a weight if rounding left none."""
    place = int(np.searchsorted(cumulative, value, side="right"))
    return place if place < len(cumulative) else int(np.searchsorted(cumulative, cumulative[-1]))


def log_probabilities(logits: Tensor, token: int, top: int = 0) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Log-probabilities of the raw model, before any parameter: of a token, and of the most likely ones.

    Args:
        logits: raw, (V,).
        top: how many of the most likely tokens; of equal ones, those with lower ids.

    Returns:
        The token's log-probability, and (id, log-probability) of the most likely tokens, best first.
    """
    row = as_row(logits)
    largest = float(row.max())
    norm = largest + math.log(np.exp(row - np.float32(largest)).sum(dtype=np.float64))
    if not top:
        return float(row[token]) - norm, ()
    n = min(top, len(row))
    places = np.flatnonzero(row >= np.partition(row, len(row) - n)[len(row) - n])
    best = places[np.argsort(-row[places], kind="stable")][:n]
    return float(row[token]) - norm, tuple((int(i), float(row[i]) - norm) for i in best)
