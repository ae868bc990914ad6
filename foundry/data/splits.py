"""The three splits of the documents, and which one a document belongs to."""

from __future__ import annotations

SPLITS = ("train", "val", "test")


def split_of(name: str, val_fraction: float, test_fraction: float) -> str:
    """The split of a document, drawn only by its hash: other documents never move it.

    Args:
        name: 16 hexadecimal digits of the hash of its text.
        val_fraction: the share of documents that go to `val`; `test_fraction` likewise.
    """
    u = int(name, 16) / 2**64
    return "test" if u < test_fraction else "val" if u < test_fraction + val_fraction else "train"
