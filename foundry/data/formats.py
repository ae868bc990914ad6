"""Readers: the files of a source as a stream of documents and of records that could not be read.

Guarantees: every record comes out once, as a `Document` or as a `Bad` with the reason, in the order of the file; damage
of the file itself (truncated, bad checksum, missing column or member) raises. Line formats stream; `json-map` and
members of parquet need the whole file in memory. A text file is one document, or several between lines that read
`<|endoftext|>`.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.data.encoding import decode, repair
from foundry.data.streams import MAX_RECORD, open_file, read_all, read_lines
from foundry.data.template import FieldError, Template

SUFFIXES = {
    ".txt": "txt", ".text": "txt", ".md": "md", ".markdown": "md", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".json": "json-map", ".parquet": "parquet",
}  # fmt: skip
SEPARATOR = b"<|endoftext|>"
EXCERPT = 160
ROWS = 1024


@dataclass(frozen=True, slots=True)
class Document:
    """A text as published; `repaired` tells that its bytes were not UTF-8."""

    file: str
    record: int
    text: str
    repaired: bool


@dataclass(frozen=True, slots=True)
class Bad:
    """A record that holds no readable text; `offset` is in bytes of the decompressed file, where known."""

    file: str
    record: int
    offset: int | None
    reason: str
    excerpt: str


def read_file(
    path: Path, shown: str, format: str, template: Template, member: str | None = None
) -> Iterator[Document | Bad]:
    """The records of one file.

    Args:
        shown: the file's name in messages and results.
        format: one of `Source.format`; `auto` goes by the suffix.

    Raises:
        DataError: if the file is damaged, of an unknown format, or lacks a column or member.
    """
    with open_file(path, member, shown) as (stream, name):
        kind = format if format != "auto" else _guess(name, shown)
        if kind in ("txt", "md"):
            yield from _read_text(stream, shown, template)
        elif kind == "jsonl":
            yield from _read_jsonl(stream, shown, template)
        elif kind == "json-map":
            yield from _read_json_map(stream, shown, template)
        else:
            yield from _read_parquet(stream, shown, template)


def _guess(name: str, shown: str) -> str:
    suffix = Path(name).suffix.lower()
    if suffix in (".zip", ".whl"):
        raise DataError(f"{shown} is an archive: name the file to read with `member:`")
    if suffix not in SUFFIXES:
        raise DataError(
            f"{shown}: the suffix {suffix!r} tells no format; set `format:` to one of "
            f"{', '.join(sorted(set(SUFFIXES.values())))}"
        )
    return SUFFIXES[suffix]


def _build(
    shown: str, record: int, fields: dict[str, Any], template: Template, offset: int | None = None
) -> Document | Bad:
    try:
        text, repaired = repair(template.render(fields))
    except FieldError as e:
        return Bad(shown, record, offset, str(e), _excerpt(json.dumps(fields, ensure_ascii=True, default=repr)))
    return Document(shown, record, text, repaired)


def _excerpt(value: bytes | str) -> str:
    text = value[: 4 * EXCERPT].decode("utf-8", "replace") if isinstance(value, bytes) else value
    return text[:EXCERPT]


def _read_text(stream: Any, shown: str, template: Template) -> Iterator[Document | Bad]:
    head = stream.read(1 << 20)
    if head[:2] in (b"\xff\xfe", b"\xfe\xff"):
        text = read_all(stream, head).decode("utf-16", "replace")
        yield _build(shown, 0, {"text": text}, template)
        return
    record, start, size, lines = 0, 0, 0, []

    def finish() -> Document | Bad:
        raw = b"\n".join(lines)
        if size > MAX_RECORD:
            return Bad(shown, record, start, "record_too_long", _excerpt(raw))
        if b"\0" in raw:
            return Bad(shown, record, start, "binary", _excerpt(raw))
        text, repaired = decode(raw)
        made = _build(shown, record, {"text": text}, template, start)
        return Document(shown, record, made.text, True) if repaired and isinstance(made, Document) else made

    separated = False
    for offset, line, whole in read_lines(stream, head):
        if whole and line.strip() == SEPARATOR:
            yield finish()
            record, start, size, lines, separated = record + 1, offset + len(line) + 1, 0, [], True
            continue
        size += len(line) + 1 if whole else MAX_RECORD + 1
        if size <= MAX_RECORD or not lines:
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


def _parse(raw: bytes, objects: Any) -> Any:
    """JSON with NaN and Infinity read as null; bytes that are not UTF-8 stay visible as escaped surrogates."""
    text = raw.decode("utf-8", "surrogateescape").removeprefix("\ufeff")
    return json.loads(text, parse_constant=lambda _: None, object_pairs_hook=objects)


def _read_jsonl(stream: Any, shown: str, template: Template) -> Iterator[Document | Bad]:
    record = 0
    for offset, line, whole in read_lines(stream):
        if not line.strip():
            continue
        fields: Any = None
        reason = ""
        if not whole:
            reason = "record_too_long"
        else:
            try:
                fields = _parse(line, _strict_object)
            except _DuplicateKey:
                reason = "duplicate_key"
            except RecursionError:
                reason = "too_deep"
            except ValueError:  # a syntax error, or a number of more than 4,300 digits
                reason = "broken_json"
        if isinstance(fields, str):
            fields = {"text": fields}
        if not reason and not isinstance(fields, dict):
            reason = "not_an_object"
        yield (
            Bad(shown, record, offset, reason, _excerpt(line))
            if reason
            else _build(shown, record, fields, template, offset)
        )
        record += 1


def _read_json_map(stream: Any, shown: str, template: Template) -> Iterator[Document | Bad]:
    """A dictionary id -> record, or a list of records; a record may be a plain string. The id is the field `id`."""
    twice: list[str] = []

    def objects(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) != len(pairs):
            names = [k for k, _ in pairs]
            twice.extend(sorted({k for k in names if names.count(k) > 1}))
        return value

    try:
        data = _parse(read_all(stream), objects)
    except (ValueError, RecursionError) as e:
        raise DataError(
            f"{shown} is not JSON ({type(e).__name__}: {e}); if it holds an object a line, set `format: jsonl`"
        ) from None
    if not isinstance(data, dict | list):
        raise DataError(f"{shown} holds a {type(data).__name__}, not a dictionary id -> record or a list of records")
    items = data.items() if isinstance(data, dict) else ((None, value) for value in data)
    record = 0
    for key, value in items:
        if isinstance(value, str):
            value = {"text": value}
        if isinstance(value, dict):
            yield _build(shown, record, value if key is None else {"id": key, **value}, template)
        else:
            yield Bad(shown, record, None, "not_an_object", _excerpt(json.dumps(value)))
        record += 1
    for key in twice:  # JSON readers keep the last of them in silence
        yield Bad(shown, record, None, "duplicate_key", _excerpt(key))
        record += 1


def _read_parquet(stream: Any, shown: str, template: Template) -> Iterator[Document | Bad]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = stream if isinstance(stream, io.BufferedReader) else io.BytesIO(read_all(stream))
    try:
        table = pq.ParquetFile(source, page_checksum_verification=True)
        names = table.schema_arrow.names
        columns = sorted({f if f in names else f.split(".")[0] for f in template.fields})
        # iter_batches gives empty batches, without an error, for columns that do not exist.
        if missing := [c for c in columns if c not in names]:
            raise DataError(
                f"{shown} has no column {', '.join(map(repr, missing))}; its columns are {', '.join(names)}. "
                "Set `text:` to fit"
            )
        record = 0
        for batch in table.iter_batches(batch_size=ROWS, columns=columns):
            values = [_column(batch.column(c)) for c in columns]
            for row in zip(*values, strict=True):
                yield _build(shown, record, dict(zip(columns, row, strict=True)), template)
                record += 1
    except pa.ArrowException as e:
        raise DataError(f"{shown} is not readable parquet ({e}); fetch or make it again") from None


def _column(column: Any) -> list[Any]:
    """Python values; strings go by way of bytes, since one that is not UTF-8 would fail the whole column."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return _undecoded(column.cast(_as_binary(column.type)).to_pylist())


def _as_binary(t: Any) -> Any:
    import pyarrow as pa

    if pa.types.is_string(t):
        return pa.binary()
    if pa.types.is_large_string(t) or pa.types.is_string_view(t):
        return pa.large_binary()
    if pa.types.is_list(t):
        return pa.list_(_as_binary(t.value_type))
    if pa.types.is_large_list(t):
        return pa.large_list(_as_binary(t.value_type))
    if pa.types.is_struct(t):
        return pa.struct([pa.field(f.name, _as_binary(f.type)) for f in t])
    return t


def _undecoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, list):
        return [_undecoded(v) for v in value]
    if isinstance(value, dict):
        return {k: _undecoded(v) for k, v in value.items()}
    return value
