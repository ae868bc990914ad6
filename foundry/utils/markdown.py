"""Markdown that no text inside can break: a user's text is shown literally, on one line, and never becomes markup."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def inline(text: str) -> str:
    """Text of a user on one line, with markup, HTML and entities escaped; `table` escapes bars."""
    return re.sub(r"([\\`*_\[\]<>&~$])", r"\\\1", " ".join(text.split()))


def code(text: str) -> str:
    """Text of a user on one line as a code span, between more backticks than any run of them in it."""
    text = " ".join(text.split())
    if "\\|" in text or not text:  # no code span in a table can contain the former
        return inline(text)
    ticks = "`" * (1 + _longest_run(text))
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def table(head: list[str], rows: Iterable[list[Any]]) -> list[str]:
    """Lines of a table; the cells are Markdown, their line breaks become spaces and their bars are escaped."""

    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]


def fenced(text: str) -> list[str]:
    """The text as a block of code, between fences longer than any run of backticks in it."""
    fence = "`" * max(3, 1 + _longest_run(text))
    return [f"{fence}text", text, fence]


def _longest_run(text: str) -> int:
    return max((len(run) for run in re.findall("`+", text)), default=0)
