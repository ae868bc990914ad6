"""Readers of text formats: every record once, as a document or as an unreadable record with its place and reason."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.data.encoding import decode, repair
from foundry.data.streams import CHUNK, Limits, as_utf8, read_lines
from foundry.data.template import FieldError, Template

SUFFIXES = {
    ".txt": "txt", ".text": "txt", ".md": "md", ".markdown": "md", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "json",
    ".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".arrow": "arrow", ".feather": "arrow", ".html": "html", ".htm": "html",
}  # fmt: skip
SEPARATOR = b"<|endoftext|>"
EXCERPT = 160


@dataclass(frozen=True, slots=True)
class Document:
    """A text as published; `repaired` tells that its bytes were not UTF-8; `url` is the record's field of that name."""

    file: str
    record: int
    text: str
    repaired: bool
    url: str = ""


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that holds no readable text; `offset` is in bytes of the decompressed file, where known."""

    file: str
    record: int
    offset: int | None
    reason: str
    excerpt: str


@dataclass(frozen=True)
class Reading:
    """How one file is read.

    Attributes:
        shown: its name in messages and results.
        cut: a line of a text file that matches it begins a document; empty: none does.
    """

    shown: str
    template: Template
    limits: Limits
    cut: str = ""


def format_of(format: str, name: str, shown: str) -> str:
    """The format of a file by its name without the compression's suffix, where the source says `auto`."""
    if format != "auto":
        return format
    suffix = Path(name).suffix.lower()
    if suffix not in SUFFIXES:
        raise DataError(
            f"{shown}: the suffix {suffix!r} tells no format; set `format:` to one of {', '.join(sorted(set(SUFFIXES.values())))}"
        )
    return SUFFIXES[suffix]


def build(
    how: Reading, record: int, fields: dict[str, Any], offset: int | None = None, strict: bool = False
) -> Document | Bad:
    """A document of a record's fields; `strict` promises that its strings are valid Unicode."""
    try:
        text = how.template.render(fields)
    except FieldError as e:
        return Bad(how.shown, record, offset, str(e), excerpt(json.dumps(fields, ensure_ascii=True, default=repr)))
    text, repaired = (text, False) if strict else repair(text)
    url = fields.get("url")
    return Document(how.shown, record, text, repaired, repair(url)[0] if isinstance(url, str) else "")


def excerpt(value: bytes | str) -> str:
    text = value[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text[:EXCERPT]


def read_text(stream: Any, how: Reading) -> Iterator[Document | Bad]:
    """A file is a document, or several between lines that read `<|endoftext|>` or that begin one by `how.cut`."""
    record, start, size, lines = 0, 0, 0, []
    limit = how.limits.record
    cut = re.compile(how.cut) if how.cut else None

    def finish() -> Document | Bad:
        raw = b"\n".join(lines)
        if size > limit:
            return Bad(how.shown, record, start, "record_too_long", excerpt(raw))
        if b"\0" in raw:
            return Bad(how.shown, record, start, "binary", excerpt(raw))
        text, repaired = decode(raw.removeprefix(codecs.BOM_UTF8))
        made = build(how, record, {"text": text}, start)
        return Document(how.shown, record, made.text, True) if repaired and isinstance(made, Document) else made

    separated = False
    for offset, line, whole in read_lines(as_utf8(stream), limit):
        if whole and line.strip() == SEPARATOR:
            yield finish()
            record, start, size, lines, separated = record + 1, offset + len(line) + 1, 0, [], True
            continue
        if cut and whole and cut.search(line.decode("utf-8", "replace").rstrip("\r")):
            if any(x.strip() for x in lines):
                yield finish()
                record += 1
            start, size, lines, separated = offset, 0, [], True
        size += len(line) + 1 if whole else limit + 1
        if size <= limit or not lines:
            lines.append(line)
    if not separated or any(x.strip() for x in lines):  # nothing need follow the last separator
        yield finish()


class _DuplicateKey(ValueError):
    pass


def _strict_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise _DuplicateKey
    return value


def _parse(raw: bytes) -> Any:
    """JSON with NaN and Infinity read as null; bytes that are not UTF-8 stay visible as escaped surrogates."""
    text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return json.loads(text, parse_constant=lambda _: None, object_pairs_hook=_strict_object)


def read_jsonl(stream: Any, how: Reading, start: int = 0, stop: int | None = None) -> Iterator[Document | Bad]:
    """A record a line; of a plain file, the lines that begin in [start, stop), `stream` standing at byte `start`.

    A strict and fast parser comes first. What it refuses is read once more by one that names the reason, or reads on past
    a lone surrogate or a NaN.
    """
    import orjson

    roots = {f.split(".")[0] for f in how.template.fields} | set(how.template.fields)
    keys = [json.dumps(f, ensure_ascii=False).encode() for f in roots]
    record = 0
    for offset, line, whole in read_lines(stream if start else as_utf8(stream), how.limits.record, start):
        if stop is not None and offset >= stop:
            return
        if not line.strip():
            continue
        fields: Any = None
        strict, reason = False, ""
        if not whole:
            reason = "record_too_long"
        else:
            try:
                fields = orjson.loads(line)
                strict = not any(
                    line.count(k) > 1 for k in keys
                )  # the parser keeps the last of two equal keys in silence
            except orjson.JSONDecodeError:
                pass
            if not strict:
                fields, reason = _carefully(line)
        if isinstance(fields, str):
            fields = {"text": fields}
        if not reason and not isinstance(fields, dict):
            reason = "not_an_object"
        yield (
            Bad(how.shown, record, offset, reason, excerpt(line))
            if reason
            else build(how, record, fields, offset, strict)
        )
        record += 1


def _carefully(line: bytes) -> tuple[Any, str]:
    """(value, why it cannot be read)"""
    try:
        return _parse(line), ""
    except _DuplicateKey:
        return None, "duplicate_key"
    except RecursionError:
        return None, "too_deep"
    except ValueError:  # a syntax error, or a number of more than 4,300 digits
        return None, "binary" if b"\0" in line else "broken_json"


class _Buffer:
    """The text of a JSON file, as much of it as one value needs."""

    def __init__(self, stream: Any, how: Reading) -> None:
        self._stream, self._how = as_utf8(stream), how
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._parse = json.JSONDecoder(parse_constant=lambda _: None, object_pairs_hook=_strict_object).raw_decode
        self.text, self.at, self.ended = "", 0, False
        if self.peek() == "\ufeff":
            self.at += 1

    def _more(self) -> bool:
        if not self.ended:
            data = self._stream.read(max(CHUNK, len(self.text) - self.at))  # twice as much each time: no quadratic work
            self.ended = not data
            self.text, self.at = self.text[self.at :] + self._decode(data, self.ended), 0
        return not self.ended

    def peek(self) -> str:
        """The next character that is no white space; empty at the end."""
        while True:
            while self.at < len(self.text) and self.text[self.at] in " \t\r\n":
                self.at += 1
            if self.at < len(self.text):
                return self.text[self.at]
            if not self._more():
                return ""

    def take(self, wanted: str) -> str:
        """The next character, which must be one of these."""
        c = self.peek()
        if not c or c not in wanted:
            raise self.broken(f"{c!r} where one of {wanted} must stand" if c else "it ends too early")
        self.at += 1
        return c

    def value(self) -> Any:
        """The next value.

        Raises:
            _DuplicateKey: for an object with two equal keys, which is passed over.
        """
        self.peek()
        while True:
            try:
                value, end = self._parse(self.text, self.at)
                if end < len(self.text) or not self._more():  # a number could go on
                    self.at = min(end, len(self.text))
                    return value
            except _DuplicateKey:
                self.at = json.JSONDecoder().raw_decode(self.text, self.at)[1]
                raise
            except json.JSONDecodeError as e:
                cut = e.msg.startswith("Unterminated string") or e.pos > len(self.text) - 12
                if not cut or (self.ended and not self._more()):
                    raise self.broken(e.msg) from None
                self._more()
            except RecursionError:
                raise self.broken("it is nested too deeply") from None
            if len(self.text) - self.at > self._how.limits.record:
                raise DataError(
                    f"{self._how.shown} holds a record of more than {self._how.limits.record:,} bytes, or is not JSON; "
                    "raise clean.max_record_bytes, or set `format: jsonl` if it holds an object a line"
                )

    def broken(self, why: str) -> DataError:
        return DataError(f"{self._how.shown} is not JSON ({why}); if it holds an object a line, set `format: jsonl`")


def read_json(stream: Any, how: Reading) -> Iterator[Document | Bad]:
    """A dictionary id → record, or a list of records; a record may be a plain string. The id is the field `id`."""
    buffer = _Buffer(stream, how)
    keyed = buffer.take("[{") == "{"
    close = "}" if keyed else "]"
    seen: set[int] = set()
    record = 0
    if buffer.peek() == close:
        buffer.at += 1
    else:
        while True:
            key = None
            if keyed:
                if buffer.peek() != '"':
                    raise buffer.broken("a key must be a string")
                key = buffer.value()
                buffer.take(":")
            yield _record(buffer, how, record, key, seen)
            record += 1
            if buffer.take("," + close) == close:
                break
    if buffer.peek():
        raise buffer.broken("something follows its end")


def _record(buffer: _Buffer, how: Reading, record: int, key: str | None, seen: set[int]) -> Document | Bad:
    try:
        value = buffer.value()
    except _DuplicateKey:
        return Bad(how.shown, record, None, "duplicate_key", excerpt(key or ""))
    if key is not None:
        if hash(key) in seen:  # JSON readers keep the last of them in silence
            return Bad(how.shown, record, None, "duplicate_key", excerpt(key))
        seen.add(hash(key))
    if isinstance(value, str):
        value = {"text": value}
    if not isinstance(value, dict):
        return Bad(how.shown, record, None, "not_an_object", excerpt(json.dumps(value)))
    return build(how, record, value if key is None else {"id": key, **value})
