"""How differences between two engines are found and reported."""

from __future__ import annotations

import math

from foundry.config import ExportError


def first_difference(ours: list[int], theirs: list[int]) -> int:
    """The first position at which two lists differ; the length of the shorter one if it begins the other."""
    pairs = enumerate(zip(ours, theirs, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))


def check_ids(text: str, ours: list[int], theirs: list[int], engine: str) -> None:
    """Compares the token ids of a text.

    Args:
        ours: SentencePiece's.
        theirs: those of `engine`.

    Raises:
        ExportError: naming the text and the first ids that differ.
    """
    if ours != theirs:
        at = first_difference(ours, theirs)
        raise ExportError(
            f"token ids differ from position {at} on for {text[:60]!r}: {ours[at : at + 5]} in SentencePiece, "
            f"{theirs[at : at + 5]} in {engine}"
        )


def power_of_ten(x: float) -> float:
    """The next power of ten above: the machine's last bits stay out of a file that must be reproducible."""
    return float(f"1e{math.floor(math.log10(x)) + 1}") if x > 0 else 0.0
