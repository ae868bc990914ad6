"""Sampling of the next token: temperature, then top-k, then top-p, in the order of Hugging Face.

Temperature 0 is greedy. top-k keeps every token that ties with the k-th. top-p keeps the smallest set of the most
likely tokens whose probability reaches p, the token that crosses it included (Holtzman et al. 2019, arXiv:1904.09751).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from torch import Tensor

from foundry.config import ConfigError, FoundryError

MAX_TEMPERATURE = 1000.0  # the distribution is uniform long before; beyond float32 every logit would be NaN
GREEDY_BELOW = 1e-5  # division of logits by less overflows float32, and would give the most likely token anyway


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen.

    Args:
        temperature: 0 is greedy; at most 2 is useful, at most 1000 allowed.
        top_k: 0 turns it off.
        top_p: 1 turns it off.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (_is_real(self.temperature) and 0 <= self.temperature <= MAX_TEMPERATURE):
            raise ConfigError(
                f"temperature must be a number from 0 (greedy) to {MAX_TEMPERATURE:g}, got {self.temperature!r}"
            )
        if not (is_integer(self.top_k) and self.top_k >= 0):
            raise ConfigError(f"top_k must be an integer of at least 0 (0 = off), got {self.top_k!r}")
        if not (_is_real(self.top_p) and 0 < self.top_p <= 1):
            raise ConfigError(f"top_p must be in (0, 1] (1 = off), got {self.top_p!r}")

    @property
    def greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW


def is_integer(value: object) -> bool:
    """Whether a value is an integer of any numeric type; True and False are not."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_real(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def probabilities(logits: Tensor, how: Sampling) -> Tensor:
    """The distribution of the next token for logits (V,): float32 (V,). A greedy one has probability 1 at one token."""
    if how.greedy:
        return torch.zeros(len(logits)).index_fill(0, logits.argmax().cpu(), 1.0)
    logits = logits.float() / how.temperature
    if 0 < how.top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(how.top_k).values[-1], -math.inf)
    if how.top_p < 1:
        ordered, order = logits.sort(descending=True, stable=True)
        p = ordered.softmax(-1)
        dropped = p.cumsum(-1) - p >= how.top_p  # the tokens before it reach p without it
        dropped[0] = False
        logits = logits.masked_fill(torch.zeros_like(dropped).scatter(0, order, dropped), -math.inf)
    return logits.softmax(-1)


def choose(logits: Tensor, how: Sampling, generator: torch.Generator) -> int:
    """The next token for logits (V,); random numbers come only from `generator`.

    Raises:
        FoundryError: if a logit is not a number, which damaged weights give.
    """
    if bool(logits.isnan().any()):
        raise FoundryError("the model's logits are NaN: its weights are damaged; restore them or train the model again")
    if how.greedy:
        return int(logits.argmax())
    return int(torch.multinomial(probabilities(logits, how).cpu(), 1, generator=generator))
