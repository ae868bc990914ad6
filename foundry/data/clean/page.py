"""`reports/data.html`: one self-contained page of what came in, what went where, and why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.data.clean.rules import REASONS
from foundry.data.splits import SPLITS
from foundry.utils.files import write_text
from foundry.utils.html_page import render_page

MAX_FILES, EXAMPLES = 200, 8


def write_page(
    path: Path, report: dict[str, Any], samples: dict[tuple[str, str], list[dict]], details: dict[str, Any]
) -> None:
    """Renders the page.

    Args:
        report: the content of `clean.json`.
        samples: examples of what was dropped and mended, by (source, kind).
        details: see `report._details`.
    """
    write_text(
        path,
        render_page(
            "Data report", __package__, "page.html",
            r=report, d=details, samples=samples, reasons=REASONS, splits=SPLITS, limit=EXAMPLES, max_files=MAX_FILES,
            most=max(report["documents"]["dropped"].values()), first=first_bucket(details["lengths"]),
        ),
    )  # fmt: skip


def first_bucket(lengths: list[tuple[int, int, int]]) -> int:
    """The first bucket of lengths that any document is in."""
    return next((i for i, (_, before, after) in enumerate(lengths) if before or after), 0)
