"""Tables and fences of Markdown that no text inside can break."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any


def table(head: list[str], rows: Iterable[list[Any]]) -> list[str]:
    """Lines of a table; a cell's line breaks become spaces and its bars are escaped."""

    def line(cells: list[Any]) -> str:
        return "| " + " | ".join(" ".join(str(c).split()).replace("|", "\\|") for c in cells) + " |"

    return [line(head), line(["---"] * len(head)), *(line(row) for row in rows)]


def fenced(text: str) -> list[str]:
    """The text as a block of code, between fences longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", text, fence]
