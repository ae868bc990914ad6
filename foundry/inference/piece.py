"""What a step of the engine computes for one slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Piece:
    """New tokens of one slot in a step.

    Args:
        slot: of the cache.
        start: the position of the first token.
        ids: the tokens.
        prompt: read in blocks; otherwise each token attends by itself, as tokens of an answer do.
        wanted: for how many of the last tokens logits are returned.
    """

    slot: int
    start: int
    ids: Sequence[int]
    prompt: bool
    wanted: int
