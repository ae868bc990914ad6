"""Lines and paragraphs that are in many documents: menus, notices, boilerplate.

There are two passes. In the first one, each unit writes the hashes of its documents' distinct long lines. Lines that
more documents have than the parameter allows are then removed from every document, all occurrences alike, so that the
order of the documents does not matter.
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np

from foundry.config import Clean


class Piece(NamedTuple):
    """What a text is split at, and the least number of characters: a shorter piece says too little to be
    boilerplate."""

    separator: str
    least: int


PIECES = {"lines": Piece("\n", 20), "paragraphs": Piece("\n\n", 100)}


def limits(params: Clean) -> dict[str, int]:
    """How many documents may have the same line and the same paragraph; 0: any number."""
    return {"lines": params.max_line_documents, "paragraphs": params.max_paragraph_documents}


def _hash(piece: str) -> int:
    return int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")


def piece_hashes(text: str, separator: str, least: int) -> set[int]:
    """Hashes of the distinct pieces of at least `least` characters, without the white space around them."""
    return {_hash(p) for x in text.split(separator) if len(p := x.strip()) >= least}


def without(text: str, separator: str, least: int, repeated: np.ndarray) -> tuple[str, int]:
    """The text without the pieces whose hash is among `repeated` (sorted uint64), and the number of pieces removed."""
    pieces = text.split(separator)
    kept = [x for x in pieces if len(p := x.strip()) < least or not _contains(repeated, _hash(p))]
    return (text, 0) if len(kept) == len(pieces) else (separator.join(kept).strip(), len(pieces) - len(kept))


def _contains(ordered: np.ndarray, value: int) -> bool:
    at = int(np.searchsorted(ordered, np.uint64(value)))
    return at < len(ordered) and int(ordered[at]) == value
