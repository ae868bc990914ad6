"""Readers of text, JSON lines, JSON and pages: a stream of bytes as documents and as records that could not be read.

Guarantees: every record comes out once, as a `Document` or as a `Bad` with the reason, in the order of the file; damage
of the file itself raises. All of them stream, and hold one record, which may have `Limits.record` bytes. A file without
anything but white space has no document; blank lines and blank documents between separators are none.

JSON goes through orjson, which is strict; what it refuses, and what is not text at once, goes through `json`, which
tells what is wrong. A key that the template needs and a record has twice makes the record bad, whichever reads it: the
fast way is left when the line holds the key more than once. (A key spelt with escapes escapes that look.) A JSON file
that says an id twice has two records.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from foundry.config import DataError
from foundry.data.read.encoding import as_bytes, decode, foreign, repair
from foundry.data.read.streams import CHUNK, Limits, read_lines, read_whole
from foundry.data.read.template import FieldError, Template

_LINE_END = re.compile(rb"\r\n?|\n")
SEPARATOR = b"<|endoftext|>"
EXCERPT = 160
LONG_LINE = 1 << 16  # a longer line of a text may be taken in parts, of which only the first can begin a document


@dataclass(frozen=True, slots=True)
class Document:
    """A text as published; `repaired` tells that its bytes were not UTF-8, `sample` is a piece of them; `url` is the
    record's field of that name."""

    file: str
    record: int
    text: str
    repaired: bool
    url: str = ""
    sample: bytes = b""


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that holds no readable text; `offset` is in bytes of the decompressed file, where known; `sample` is a
    piece of what is no text."""

    file: str
    record: int
    offset: int | None
    reason: str
    excerpt: str
    sample: bytes = b""


class Recipe:
    """How records become documents: a template, where texts are cut, how large things may be, and the encoding that the
    user named (None: UTF-8, or what a byte order mark says)."""

    def __init__(self, text: str, cut: str, limits: Limits, encoding: str | None = None) -> None:
        self.encoding = None if encoding and codecs.lookup(encoding).name in ("utf-8", "utf-8-sig") else encoding
        self.template = Template(text)
        self.cut = re.compile(cut) if cut else None
        self.limits, self.limit = limits, limits.record
        self.fields = tuple(dict.fromkeys(self.template.fields))
        self.keys = frozenset(k for f in self.fields for k in (f, *f.split(".")))

    def build(
        self, shown: str, record: int, fields: dict[str, Any], offset: int | None = None, sample: bytes = b""
    ) -> Document | Bad:
        """
        Args:
            sample: of a record whose bytes had to be repaired, a piece of them.
        """
        try:
            text, repaired = repair(rendered := self.template.render(fields))
        except FieldError as e:
            return Bad(shown, record, offset, str(e), excerpt(json.dumps(fields, default=repr)))
        if 4 * len(text) > self.limit and len(text.encode("utf-8")) > self.limit:
            return Bad(shown, record, offset, "record_too_long", excerpt(text))
        if repaired:
            sample = foreign(as_bytes(rendered))
        return Document(shown, record, text, bool(sample), url_of(fields), sample)

    def plain(self) -> Callable[[dict[str, Any]], str | None]:
        """The template for records whose fields are all strings; None for the others, which `build` reads."""
        if any(spec for _, _, spec in self.template.parts):
            return lambda record: None
        if [(literal, field) for literal, field, _ in self.template.parts] == [("", self.fields[0])]:
            only = self.fields[0]

            def one(record: dict[str, Any]) -> str | None:
                value = record.get(only)
                return value if type(value) is str else None

            return one

        def all_of_them(record: dict[str, Any]) -> str | None:
            out = []
            for literal, field, _ in self.template.parts:
                out.append(literal)
                if field is not None:
                    value = record.get(field)
                    if type(value) is not str:
                        return None
                    out.append(value)
            return "".join(out)

        return all_of_them


def url_of(fields: dict[str, Any]) -> str:
    url = fields.get("url")
    return repair(url)[0] if isinstance(url, str) else ""


def excerpt(value: bytes | str) -> str:
    text = value[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text[:EXCERPT]


def read_text(stream: Any, shown: str, recipe: Recipe) -> Iterator[Document | Bad]:
    """A file is a document, or several: lines `<|endoftext|>` separate, lines that match `cut` begin a new one. A line
    ends with a line feed, a return, or both."""
    record, start, size, held = 0, 0, 0, bytearray()

    def finish() -> Document | Bad | None:
        raw = bytes(held).removesuffix(b"\n")
        if size - held.endswith(b"\n") > recipe.limit:
            return Bad(shown, record, start, "record_too_long", excerpt(raw))
        if b"\0" in raw:
            return Bad(shown, record, start, "binary", excerpt(raw), foreign(raw))
        text, repaired = decode(raw.removeprefix(b"\xef\xbb\xbf") if start == 0 else raw)
        sample = foreign(raw) if repaired else b""
        return recipe.build(shown, record, {"text": text}, start, sample) if raw.strip() else None

    for offset, run, begins in _runs(stream, recipe.cut):
        if begins:
            if item := finish():
                yield item
                record += 1
            start, size = offset, 0
            held.clear()
        held += run[: max(0, recipe.limit + 1 - size)]
        size += len(run)
    if item := finish():
        yield item


def _runs(stream: Any, cut: re.Pattern[str] | None) -> Iterator[tuple[int, bytes, bool]]:
    """(byte offset, some lines, whether a new document begins with them); separators are left out."""
    base, tail, amid, begins = 0, b"", False, False
    while True:
        chunk = stream.read(CHUNK)
        block = tail + chunk
        # A return at the end may be half of a line end. Files of old Macs have returns and nothing else.
        end = max(block.rfind(b"\n"), block.rfind(b"\r", 0, len(block) - 1)) + 1 if chunk else len(block)
        if not end and len(block) >= LONG_LINE:
            end = len(block)
        at = 0
        for first, after in _marks(block[:end], cut, amid):
            yield base + at, block[at:first], begins
            at, begins = after, True
        if at < end:
            yield base + at, block[at:end], begins
            begins = False
        if end:
            amid = block[end - 1] not in b"\r\n"
        base, tail = base + end, block[end:]
        if not chunk:
            return


def _marks(lines: bytes, cut: re.Pattern[str] | None, amid: bool) -> Iterator[tuple[int, int]]:
    """Where separators begin and end, and, as empty spans, where lines begin that match; `amid` a line is no place."""
    at = 0
    while at < len(lines):
        if cut is None:
            if (found := lines.find(SEPARATOR, at)) < 0:
                return
            at = max(at, lines.rfind(b"\n", at, found) + 1, lines.rfind(b"\r", at, found) + 1)
        line_end = _LINE_END.search(lines, at)
        after = line_end.end() if line_end else len(lines)
        line = lines[at:after]
        if not (amid and at == 0):
            if line.strip() == SEPARATOR:
                yield at, after
            elif cut is not None and cut.search(decode(line)[0].rstrip("\r\n")):
                yield at, at
        at = after


class _DuplicateKey(ValueError):
    pass


def _parse(raw: bytes, keys: frozenset[str]) -> Any:
    """JSON with NaN and Infinity read as null; bytes that are not UTF-8 stay visible as escaped surrogates. An integer
    of more digits than Python converts (4,300) stays its digits, which is what a template would write."""

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


def _records(shown: str, recipe: Recipe) -> Callable[[int, int, bytes, bool, str | None], Document | Bad]:
    """The function (record, offset, JSON, whether it is whole, its id) -> item."""
    import orjson

    loads, plain, keys = orjson.loads, recipe.plain(), recipe.keys
    quoted = [json.dumps(f, ensure_ascii=False).encode() for f in sorted(keys)]
    named = [re.compile(re.escape(q) + rb"\s*:") for q in quoted]
    limit = recipe.limit if len(recipe.template.parts) > 1 else 0  # one field alone is no longer than its record

    def once(raw: bytes) -> bool:
        return all(raw.count(q) < 2 or len(n.findall(raw)) < 2 for q, n in zip(quoted, named, strict=True))

    def make(record: int, offset: int, raw: bytes, whole: bool, key: str | None = None) -> Document | Bad:
        if not whole:
            return Bad(shown, record, offset, "record_too_long", excerpt(raw))
        try:
            fields = loads(raw)
        except ValueError:
            fields = None
        if type(fields) is dict:
            text = plain(fields if key is None else {"id": key, **fields})
            if text is not None and once(raw) and not (limit and 4 * len(text) > limit):
                return Document(shown, record, text, False, url_of(fields))
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
        return recipe.build(shown, record, fields if key is None else {"id": key, **fields}, offset)

    return make


def read_jsonl(
    stream: Any, shown: str, recipe: Recipe, start: int = 0, stop: int | None = None
) -> Iterator[Document | Bad]:
    """An object or a string a line; of the lines that begin in [start, stop), as `read_lines` has it."""
    make, record = _records(shown, recipe), 0
    for offset, line, whole in read_lines(stream, recipe.limit, start, stop):
        if line and not line.isspace():
            yield make(record, offset, line, whole)
            record += 1


def read_json(stream: Any, shown: str, recipe: Recipe) -> Iterator[Document | Bad]:
    """A dictionary id -> record, or a list of records; a record may be a plain string. The id is the field `id`.

    Raises:
        DataError: if it is not one complete JSON value of these kinds; a record with a fault within is `Bad`.
    """
    make, record, text = _records(shown, recipe), 0, _JsonText(stream, shown, recipe.limit)
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
                _, raw, whole = text.value()
                try:
                    key = str(_parse(raw, frozenset()))
                except ValueError:
                    whole = False
                if not whole or text.peek() != b":":
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
    """Walks over the values of a JSON text by their brackets and quotes, holding one of them and a chunk."""

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
            f"{seen!r}; if it holds an object a line, set `format: jsonl`, else fetch or make it again"
        )

    def peek(self) -> bytes:
        """The next byte that is no white space; none at the end."""
        while True:
            self.at = self.SPACE.match(self.chunk, self.at).end()
            if self.at < len(self.chunk) or not self._more():
                return self.chunk[self.at : self.at + 1]

    def skip(self) -> None:
        self.at += 1

    def value(self) -> tuple[int, bytes, bool]:
        """(byte offset, the bytes of one value, whether they are whole)."""
        if self.peek() in (b"", b",", b"]", b"}", b":"):
            self.wrong("a value")
        offset, held, size = self.base + self.at, bytearray(), 0
        depth, quoted, scalar = 0, False, False
        while True:
            begin = self.at
            self.at, depth, quoted, done = self._scan(depth, quoted, scalar)
            scalar = depth == 0 and not quoted
            size += self.at - begin
            if len(held) < self.limit:
                held += self.chunk[begin : self.at]
            if not done and not self._more():
                done = scalar or self.wrong("the rest of a value")
            if done:
                return offset, bytes(held[: self.limit]), size <= self.limit

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


def read_page(stream: Any, shown: str, recipe: Recipe) -> Iterator[Document | Bad]:
    """A page is a document, of the fields `text` (its main part), `title` and `url` (the canonical one)."""
    from foundry.data.read.webpage import page_fields

    raw, whole = read_whole(stream, recipe.limit)
    if not whole:
        yield Bad(shown, 0, 0, "record_too_long", excerpt(raw))
    elif b"\0" in raw:
        yield Bad(shown, 0, 0, "binary", excerpt(raw), foreign(raw))
    elif raw.strip():
        fields, repaired = page_fields(raw)
        yield recipe.build(shown, 0, fields, 0, foreign(raw) if repaired else b"")
