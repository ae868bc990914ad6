"""What readers yield: documents, and records that could not be read; and how the fields of a record become a document.

Guarantees of every reader: each record comes out once, as a `Document` or as a `Bad` with the reason, in the order of
the file; damage of the file itself raises. Readers stream, with one record of at most `Limits.record` bytes in memory.
A file that contains nothing but white space has no document; blank lines and blank documents between separators are
none.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from foundry.data.read.encoding import as_bytes, foreign, repair
from foundry.data.read.streams import Limits
from foundry.data.read.template import FieldError, Template, find_field

EXCERPT = 160  # characters


@dataclass(frozen=True, slots=True)
class Document:
    """A text as published.

    Attributes:
        file: the file's path below the raw folder, `!` and the member for one of an archive.
        record: the number of the record, from 0.
        repaired: whether its bytes had to be repaired to be text.
        url: the field of that name in the record.
        sample: of a repaired text, a piece of the bytes.
        fields: those that the source keeps, as they were read; None if it keeps none.
    """

    file: str
    record: int
    text: str
    repaired: bool
    url: str = ""
    sample: bytes = b""
    fields: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Bad:
    """A record without readable text.

    Attributes:
        file, record: as in `Document`.
        offset: in bytes of the decompressed file, where known.
        sample: a piece of what is not text.
    """

    file: str
    record: int
    offset: int | None
    reason: str
    excerpt: str
    sample: bytes = b""


class DocumentBuilder:
    """How records become documents.

    Args:
        text: the template.
        cut: regular expression of the lines of a plain text that begin a new document; empty for none.
        limits: how large things may be.
        encoding: that the user named; None for UTF-8 or what a byte order mark says.
        keep: names of fields that are kept beside the text.
    """

    def __init__(
        self, text: str, cut: str, limits: Limits, encoding: str | None = None, keep: tuple[str, ...] = ()
    ) -> None:
        self.encoding = None if encoding and codecs.lookup(encoding).name in ("utf-8", "utf-8-sig") else encoding
        self.template = Template(text)
        self.cut = re.compile(cut) if cut else None
        self.limits, self.limit = limits, limits.record
        self.fields = tuple(dict.fromkeys(self.template.fields))
        self.keep = keep
        self.keys = frozenset(k for f in (*self.fields, *keep) for k in (f, *f.split(".")))

    def build(
        self, shown: str, record: int, fields: dict[str, Any], offset: int | None = None, sample: bytes = b""
    ) -> Document | Bad:
        """The document of one record.

        Args:
            sample: of a record whose bytes had to be repaired, a piece of them.
        """
        try:
            text, repaired = repair(rendered := self.template.render(fields))
        except FieldError as e:
            return Bad(shown, record, offset, e.reason, excerpt(json.dumps(fields, default=repr)))
        if 4 * len(text) > self.limit and len(text.encode("utf-8")) > self.limit:
            return Bad(shown, record, offset, "record_too_long", excerpt(text))
        if repaired:
            sample = foreign(as_bytes(rendered))
        return Document(shown, record, text, bool(sample), url_of(fields), sample, self.kept(fields))

    def kept(self, fields: dict[str, Any]) -> dict[str, Any] | None:
        """The fields of a record that are kept, without those that it lacks; None if the source keeps none."""
        if not self.keep:
            return None
        found = {name: find_field(fields, name) for name in self.keep}
        return {name: value for name, value in found.items() if value is not None}

    def string_template(self) -> Callable[[dict[str, Any]], str | None]:
        """The template for records whose fields are all strings; it gives None for the others, which `build` reads."""
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
