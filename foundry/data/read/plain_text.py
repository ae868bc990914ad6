"""Reader of plain text and Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from foundry.data.read.encoding import decode, foreign
from foundry.data.read.readers import reads
from foundry.data.read.records import Bad, Document, DocumentBuilder, excerpt
from foundry.data.read.streams import CHUNK

SEPARATOR = b"<|endoftext|>"
LONG_LINE = 1 << 16  # a longer line may be taken in parts, of which only the first can begin a document
_LINE_END = re.compile(rb"\r\n?|\n")


@reads("txt", "md")
def read_text(stream: Any, shown: str, builder: DocumentBuilder) -> Iterator[Document | Bad]:
    """A file is one document, or several: lines `<|endoftext|>` separate them, lines that match `cut` begin a new one.

    A line ends with a line feed, a carriage return, or both.
    """
    record, start, size, kept = 0, 0, 0, bytearray()

    def finish() -> Document | Bad | None:
        raw = bytes(kept).removesuffix(b"\n")
        if size - kept.endswith(b"\n") > builder.limit:
            return Bad(shown, record, start, "record_too_long", excerpt(raw))
        if b"\0" in raw:
            return Bad(shown, record, start, "binary", excerpt(raw), foreign(raw))
        text, repaired = decode(raw.removeprefix(b"\xef\xbb\xbf") if start == 0 else raw)
        sample = foreign(raw) if repaired else b""
        return builder.build(shown, record, {"text": text}, start, sample) if raw.strip() else None

    for offset, run, begins in _runs(stream, builder.cut):
        if begins:
            if item := finish():
                yield item
                record += 1
            start, size = offset, 0
            kept.clear()
        kept += run[: max(0, builder.limit + 1 - size)]
        size += len(run)
    if item := finish():
        yield item


def _runs(stream: Any, cut: re.Pattern[str] | None) -> Iterator[tuple[int, bytes, bool]]:
    """(byte offset, some lines, whether a new document begins with them); separators are left out."""
    base, tail, inside, begins = 0, b"", False, False
    while True:
        chunk = stream.read(CHUNK)
        block = tail + chunk
        # A carriage return at the end may be half of a line end. Files of old Macs have nothing but these returns.
        end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1 if chunk else len(block)
        if not end and len(block) >= LONG_LINE:
            end = len(block)
        at = 0
        for first, after in _marks(block[:end], cut, inside):
            yield base + at, block[at:first], begins
            at, begins = after, True
        if at < end:
            yield base + at, block[at:end], begins
            begins = False
        if end:
            inside = block[end - 1] not in b"\r\n"
        base, tail = base + end, block[end:]
        if not chunk:
            return


def _marks(lines: bytes, cut: re.Pattern[str] | None, inside: bool) -> Iterator[tuple[int, int]]:
    """Where separators begin and end, and, as empty spans, where lines begin that match `cut`.

    Args:
        inside: whether `lines` begins inside a line, where nothing can match.
    """
    at = 0
    while at < len(lines):
        if cut is None:
            if (found := lines.find(SEPARATOR, at)) < 0:
                return
            at = max(at, lines.rfind(b"\n", at, found) + 1, lines.rfind(b"\r", at, found) + 1)
        line_end = _LINE_END.search(lines, at)
        after = line_end.end() if line_end else len(lines)
        line = lines[at:after]
        if not (inside and at == 0):
            if line.strip() == SEPARATOR:
                yield at, after
            elif cut is not None and cut.search(decode(line)[0].rstrip("\r\n")):
                yield at, at
        at = after
