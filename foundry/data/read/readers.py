"""The readers of the formats: each says by `reads` which format it reads and what it can do.

A reader is a function `(content, shown, builder)` that yields documents and bad records. `content` is a stream of bytes
(UTF-8, but for pages, unless the source names an encoding), or a path where the format is read `from_disk`; `shown` is
the name of the file in records and messages. A reader whose files can be divided takes `start` and `stop`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from foundry.data.read.records import Bad, Document
from foundry.data.read.streams import Limits


class Range(NamedTuple):
    """A part of a file; what is counted depends on the format. `stop` is None for the end of the file."""

    start: int = 0
    stop: int | None = None


WHOLE = [Range()]
Read = Callable[..., Iterator[Document | Bad]]
Divide = Callable[[Path, str, int, Limits], list[Range]]  # (path, shown, unit_bytes, limits)


@dataclass(frozen=True)
class Reader:
    """A reader and what it can do.

    Attributes:
        from_disk: it needs a file, since the index is at its end; otherwise it reads forward.
        divide: gives the ranges of a file, of about `unit_bytes` each, that can be read independently; None if the
            format cannot be divided.
    """

    read: Read
    from_disk: bool
    divide: Divide | None


READERS: dict[str, Reader] = {}  # by format; `units` imports the modules that fill it


def reads(*formats: str, from_disk: bool = False, divide: Divide | None = None) -> Callable[[Read], Read]:
    """Makes a function the reader of these formats of `foundry.config.formats`."""

    def register(read: Read) -> Read:
        READERS.update(dict.fromkeys(formats, Reader(read, from_disk, divide)))
        return read

    return register


def ranges_by_size(sizes: list[int], unit_bytes: int) -> list[Range]:
    """Ranges of pieces in a row, each of at most `unit_bytes`, or of one piece that is larger."""
    starts, size = [0], 0
    for i, n in enumerate(sizes):
        if size and size + n > unit_bytes:
            starts.append(i)
            size = 0
        size += n
    if len(starts) == 1:
        return WHOLE
    return [Range(a, b) for a, b in zip(starts, [*starts[1:], len(sizes)], strict=True)]
