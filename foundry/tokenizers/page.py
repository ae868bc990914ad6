"""`reports/tokenizer.html`: how well the vocabulary serves each language, beside a reference if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.utils.files import write_text
from foundry.utils.html_page import render_page


def write_page(path: str | Path, facts: dict[str, Any]) -> None:
    """Renders the page of `tokenizer_facts`."""
    sides = [("trained", facts)] + ([("reference", facts["reference"])] if "reference" in facts else [])
    write_text(path, render_page("Tokenizer", __package__, "page.html", f=facts, sides=sides))
