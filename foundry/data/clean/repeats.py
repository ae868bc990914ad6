"""Lines and paragraphs that stand in many documents: menus, notices, boilerplate.

Two passes: each unit writes the hashes of its documents' distinct long lines; those that occur in more documents than the
parameter allows are removed from every document, all occurrences alike, so that no order matters.
"""

from __future__ import annotations

import hashlib

import numpy as np

LINE_CHARS, PARAGRAPH_CHARS = 20, 100  # shorter ones say too little to be boilerplate


def _hash(piece: str) -> int:
    return int.from_bytes(hashlib.blake2b(piece.encode(), digest_size=8).digest(), "little")


def piece_hashes(text: str, separator: str, least: int) -> set[int]:
    """Hashes of the distinct pieces of at least so many characters; white space around them does not count."""
    return {_hash(p) for x in text.split(separator) if len(p := x.strip()) >= least}


def without(text: str, separator: str, least: int, repeated: np.ndarray) -> tuple[str, int]:
    """The text without the pieces whose hash is among `repeated` (sorted uint64), and how many those were."""
    pieces = text.split(separator)
    kept = [x for x in pieces if len(p := x.strip()) < least or not _in(_hash(p), repeated)]
    return (text, 0) if len(kept) == len(pieces) else (separator.join(kept).strip(), len(pieces) - len(kept))


def _in(value: int, ordered: np.ndarray) -> bool:
    at = int(np.searchsorted(ordered, np.uint64(value)))
    return at < len(ordered) and int(ordered[at]) == value
