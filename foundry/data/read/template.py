"""Text templates: how a record becomes a document, e.g. `"{title}\\n\\n{steps:numbers}"`.

A field is a key of the record, or a dotted path into nested records. Lists are joined with line ends; the format
`bullets` writes each item as `- item`, `numbers` as `1. item`. `{{` and `}}` are literal braces. Nothing else of
`str.format` is understood: no attribute access, no conversions.
"""

from __future__ import annotations

import string
from typing import Any, NamedTuple

from foundry.config import ConfigError

SPECS = ("", "bullets", "numbers")


class FieldError(ValueError):
    """A record lacks a field of the template, or the field is not text.

    Attributes:
        reason: of the quarantine.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Part(NamedTuple):
    """A literal text, and the field that follows it with its format; None at the end of a template without one."""

    literal: str
    field: str | None
    spec: str


class Template:
    """A parsed template.

    Raises:
        ConfigError: for a template that is not understood or has no field.
    """

    def __init__(self, text: str) -> None:
        self.parts: list[Part] = []
        try:
            parsed = list(string.Formatter().parse(text))
        except ValueError as e:
            raise ConfigError(f"text template {text!r}: {e}; literal braces are written {{{{ and }}}}") from None
        for literal, field, spec, conversion in parsed:
            if field is not None and (not field or conversion or spec not in SPECS):
                shown = "{" + field + ("!" + conversion if conversion else "") + (":" + spec if spec else "") + "}"
                raise ConfigError(
                    f"text template {text!r}: {shown} is not understood; "
                    "write {field}, {field:bullets} or {field:numbers}"
                )
            self.parts.append(Part(literal, field, spec or ""))
        self.fields = [f for _, f, _ in self.parts if f is not None]
        if not self.fields:
            raise ConfigError(f"text template {text!r} has no {{field}}: every document would be the same")

    def render(self, record: dict[str, Any]) -> str:
        """The document's text.

        Raises:
            FieldError: naming the field that is missing or is not text.
        """
        out = []
        for literal, field, spec in self.parts:
            out.append(literal)
            if field is not None:
                out.append(_text(find_field(record, field), field, spec))
        return "".join(out)


def find_field(record: dict[str, Any], field: str) -> Any:
    """The value of a field; None if the record lacks it."""
    if field in record:
        return record[field]
    value: Any = record
    for key in field.split("."):
        if not isinstance(value, dict) or key not in value:
            return None
        value = value[key]
    return value


def _text(value: Any, field: str, spec: str) -> str:
    if value is None:
        raise FieldError(f"missing_field {field}")
    if isinstance(value, list):
        items = [_text(v, field, "") for v in value]
        if spec:
            items = [" ".join(i.split("\n")) for i in items]
        return "\n".join(
            f"- {t}" if spec == "bullets" else f"{i}. {t}" if spec == "numbers" else t for i, t in enumerate(items, 1)
        )
    if spec:
        raise FieldError(f"not_a_list {field}")
    if isinstance(value, str):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise FieldError(f"not_text {field}")
