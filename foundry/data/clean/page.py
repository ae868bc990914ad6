"""`reports/data.html`: one self-contained page of what came in, what went where, and why."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from foundry.data.clean.accounting import Examples
from foundry.data.clean.outcome import Cluster
from foundry.data.clean.rules import REASONS
from foundry.data.splits import SPLITS
from foundry.utils.cleaning_report import CleaningReport, SplitSize
from foundry.utils.files import write_text
from foundry.utils.html_page import render_page

MAX_FILES, EXAMPLES = 200, 8


class FileAccount(NamedTuple):
    path: str
    records: int
    kept: int
    dropped: int
    quarantined: int


class Lengths(NamedTuple):
    """Documents of at least `least` and less than twice as many characters: as they were read, and as they are kept."""

    least: int
    before: int
    after: int


class LanguageSize(NamedTuple):
    lang: str
    documents: int
    bytes: int


@dataclass(frozen=True)
class PageData:
    """What the page shows beyond `clean.json`; `splits` are those of each source, in the order of `SPLITS`."""

    files: list[FileAccount]
    lengths: list[Lengths]
    languages: list[LanguageSize]
    domains: list[tuple[str, int]]
    clusters: list[Cluster]
    splits: dict[str, list[SplitSize]]


def write_page(path: Path, report: CleaningReport, examples: Examples, data: PageData) -> None:
    """Renders the page. It shows the lengths from the first bucket that any document is in."""
    occupied = (i for i, x in enumerate(data.lengths) if x.before or x.after)
    lengths = data.lengths[next(occupied, 0) :]
    values = {
        "report": report,
        "data": data,
        "examples": examples,
        "reasons": REASONS,
        "splits": SPLITS,
        "limit": EXAMPLES,
        "max_files": MAX_FILES,
        "most_dropped": max(report.documents.dropped.values()),
        "lengths": lengths,
        "tallest": max(max(x.before, x.after, 1) for x in lengths),
    }
    write_text(path, render_page("Data report", __package__, "page.html", **values))
