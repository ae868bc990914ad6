"""`reports/tokenizer.html`: how well the vocabulary encodes each language, beside a reference if there is one."""

from __future__ import annotations

from pathlib import Path

from foundry.tokenizers.facts import TokenizerFacts
from foundry.utils.files import write_text
from foundry.utils.html_page import render_page


def write_page(path: str | Path, facts: TokenizerFacts) -> None:
    """Renders the page."""
    write_text(path, render_page("Tokenizer", __package__, "page.html", f=facts, sides=facts.vocabularies()))
