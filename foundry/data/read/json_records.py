"""Readers of JSON lines and JSON.

JSON is parsed by orjson, which is strict. What it refuses, and what is not a string at once, is parsed again by `json`,
which shows what is wrong. A key that the template needs and that a record has twice makes the record bad, whichever
library parses it: the fast way is left when the line contains the key more than once. (A key written with escapes
escapes that check.) A JSON file that has an id twice has two records.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from foundry.config import DataError
from foundry.data.read.encoding import foreign, wide_encoding
from foundry.data.read.readers import WHOLE, Range, reads
from foundry.data.read.records import Bad, Document, DocumentBuilder, excerpt, url_of
from foundry.data.read.streams import CHUNK, Limits, read_lines


class _DuplicateKey(ValueError):
    pass


def _parse(raw: bytes, keys: frozenset[str]) -> Any:
    """JSON with NaN and Infinity read as null; bytes that are not UTF-8 stay visible as escaped surrogates.

    An integer of more digits than Python converts (4,300) stays a string of its digits, as a template would write it.

    Args:
        keys: that no object may have twice.
    """

    def strict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            seen: set[str] = set()
            for key, _ in pairs:
                if key in keys and key in seen:
                    raise _DuplicateKey
                seen.add(key)
        return value

    def number(digits: str) -> int | str:
        try:
            return int(digits)
        except ValueError:
            return digits

    text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return json.loads(text, parse_constant=lambda _: None, parse_int=number, object_pairs_hook=strict)


def _records(shown: str, builder: DocumentBuilder) -> Callable[[int, int, bytes, bool, str | None], Document | Bad]:
    """The function (record, offset, JSON, whether it is complete, its id) -> item."""
    import orjson

    loads, render, keys = orjson.loads, builder.string_template(), builder.keys
    quoted = [json.dumps(f, ensure_ascii=False).encode() for f in sorted(keys)]
    named = [re.compile(re.escape(q) + rb"\s*:") for q in quoted]
    limit = builder.limit if len(builder.template.parts) > 1 else 0  # a single field is no longer than its record

    def once(raw: bytes) -> bool:
        return all(raw.count(q) < 2 or len(n.findall(raw)) < 2 for q, n in zip(quoted, named, strict=True))

    def make(record: int, offset: int, raw: bytes, complete: bool, key: str | None = None) -> Document | Bad:
        if not complete:
            return Bad(shown, record, offset, "record_too_long", excerpt(raw))
        try:
            fields = loads(raw)
        except ValueError:
            fields = None
        if type(fields) is dict:
            text = render(fields if key is None else {"id": key, **fields})
            if text is not None and once(raw) and not (limit and 4 * len(text) > limit):
                return Document(
                    shown,
                    record,
                    text,
                    False,
                    url_of(fields),
                    fields=builder.kept(fields if key is None else {"id": key, **fields}),
                )
        reason = ""
        try:
            fields = _parse(raw, keys)
        except _DuplicateKey:
            reason = "duplicate_key"
        except RecursionError:
            reason = "too_deep"
        except ValueError:
            reason = "binary" if b"\0" in raw else "broken_json"
        if isinstance(fields, str):
            fields = {"text": fields}
        if not reason and not isinstance(fields, dict):
            reason = "not_an_object"
        if reason:
            return Bad(shown, record, offset, reason, excerpt(raw), foreign(raw) if reason == "binary" else b"")
        return builder.build(shown, record, fields if key is None else {"id": key, **fields}, offset)

    return make


def divide_lines(path: Path, shown: str, unit_bytes: int, limits: Limits) -> list[Range]:
    """Ranges of bytes; UTF-16 and UTF-32, whose line ends are more than one byte, are not divided."""
    size = path.stat().st_size
    if size <= unit_bytes:
        return WHOLE
    with open(path, "rb") as f:
        if wide_encoding(f.read(4)):
            return WHOLE
    return [Range(at, at + unit_bytes if at + unit_bytes < size else None) for at in range(0, size, unit_bytes)]


@reads("jsonl", divide=divide_lines)
def read_jsonl(
    stream: Any, shown: str, builder: DocumentBuilder, start: int = 0, stop: int | None = None
) -> Iterator[Document | Bad]:
    """One object or string per line, of the lines that begin in [start, stop); see `read_lines`."""
    make, record = _records(shown, builder), 0
    for offset, line, complete in read_lines(stream, builder.limit, start, stop):
        if line and not line.isspace():
            yield make(record, offset, line, complete)
            record += 1


@reads("json")
def read_json(stream: Any, shown: str, builder: DocumentBuilder) -> Iterator[Document | Bad]:
    """A dictionary id -> record, or a list of records; a record may be a plain string. The id is the field `id`.

    Raises:
        DataError: if it is not one complete JSON value of these kinds; a record with a fault within is `Bad`.
    """
    make, record, text = _records(shown, builder), 0, _JsonText(stream, shown, builder.limit)
    opened = text.peek()
    if not opened:
        return
    if opened not in (b"{", b"["):
        text.wrong("a dictionary id -> record or a list of records")
    text.skip()
    closing, key = b"}" if opened == b"{" else b"]", None
    if text.peek() != closing:
        while True:
            if opened == b"{":
                if text.peek() != b'"':
                    text.wrong("a key")
                _, raw, complete = text.value()
                try:
                    key = str(_parse(raw, frozenset()))
                except ValueError:
                    complete = False
                if not complete or text.peek() != b":":
                    text.wrong("a key and a colon")
                text.skip()
            yield make(record, *text.value(), key)
            record += 1
            if text.peek() != b",":
                break
            text.skip()
    if text.peek() != closing:
        text.wrong(f"a comma or {closing.decode()}")
    text.skip()
    if text.peek():
        text.wrong("the end")


class _JsonText:
    """Walks over the values of a JSON text by their brackets and quotes, with one of them and a chunk in memory."""

    SPACE = re.compile(rb"[ \t\r\n]*")
    MARK = re.compile(rb'["{}\[\]]')
    END = re.compile(rb'["{}\[\], \t\r\n]')

    def __init__(self, stream: Any, shown: str, limit: int) -> None:
        self.stream, self.shown, self.limit = stream, shown, limit
        self.chunk: bytes = stream.read(CHUNK)
        self.base, self.at = 0, 0  # the chunk's place in the file, ours in the chunk
        if self.chunk.startswith(b"\xef\xbb\xbf"):
            self.at = 3

    def _more(self) -> bool:
        new = self.stream.read(CHUNK)
        self.base, self.chunk, self.at = self.base + self.at, self.chunk[self.at :] + new, 0
        return bool(new)

    def wrong(self, wanted: str) -> NoReturn:
        seen = excerpt(self.chunk[self.at : self.at + 40]) or "the end of the file"
        raise DataError(
            f"{self.shown} is not one JSON value of records: byte {self.base + self.at} should begin {wanted}, not "
            f"{seen!r}; if it has one object per line, set `format: jsonl`, else fetch or make it again"
        )

    def peek(self) -> bytes:
        """The next byte that is not white space; empty at the end."""
        while True:
            self.at = self.SPACE.match(self.chunk, self.at).end()
            if self.at < len(self.chunk) or not self._more():
                return self.chunk[self.at : self.at + 1]

    def skip(self) -> None:
        self.at += 1

    def value(self) -> tuple[int, bytes, bool]:
        """(byte offset, the bytes of one value, whether they are complete)."""
        if self.peek() in (b"", b",", b"]", b"}", b":"):
            self.wrong("a value")
        offset, kept, size = self.base + self.at, bytearray(), 0
        depth, quoted, scalar = 0, False, False
        while True:
            begin = self.at
            self.at, depth, quoted, done = self._scan(depth, quoted, scalar)
            scalar = depth == 0 and not quoted
            size += self.at - begin
            if len(kept) < self.limit:
                kept += self.chunk[begin : self.at]
            if not done and not self._more():
                done = scalar or self.wrong("the rest of a value")
            if done:
                return offset, bytes(kept[: self.limit]), size <= self.limit

    def _scan(self, depth: int, quoted: bool, scalar: bool) -> tuple[int, int, bool, bool]:
        """(where a value or the chunk ends, open brackets, whether in a string, whether the value is done)."""
        chunk, at = self.chunk, self.at
        while at < len(chunk):
            if quoted:
                end = chunk.find(b'"', at)
                stop = len(chunk) if end < 0 else end
                escaped = 0
                if stop > at and chunk[stop - 1] == 92:
                    escaped = (stop - at - len(chunk[at:stop].rstrip(b"\\"))) % 2
                if end < 0:
                    return stop - escaped, depth, True, False  # a backslash waits for what it escapes
                quoted, at = bool(escaped), stop + 1
                if depth == 0 and not quoted:
                    return at, depth, quoted, True
                continue
            found = (self.MARK if depth else self.END).search(chunk, at)
            if not found:
                return len(chunk), depth, quoted, False
            mark, here = chunk[found.start()], found.start()
            if depth == 0 and (scalar or here > at or mark not in b'"{['):
                return here, depth, quoted, True
            at = here + 1
            if mark == 34:
                quoted = True
            else:
                depth += 1 if mark in b"{[" else -1
                if depth == 0:
                    return at, depth, quoted, True
        return at, depth, quoted, False
