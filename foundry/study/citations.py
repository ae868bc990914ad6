"""Citations in Markdown: a path, its lines, and a short fragment that these lines contain.

The form is ``[`path/to/file.py:120-131`] "at most twelve words"``. Spaces, line breaks and the indentation of the code
do not matter for the comparison, so that a fragment may cover several lines.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

WORDS, CHARACTERS, LINES = 12, 4, 100  # a fragment has at most 12 words, at least 4 characters; a citation, 100 lines
CITATION = re.compile(r'\[`(?P<path>[^`\s:]+):(?P<first>\d+)(?:-(?P<last>\d+))?`\]\s+"(?P<quote>[^"]+)"')
START = re.compile(r"\[`[^`\s:]+:\d+")


@dataclass(frozen=True, order=True)
class Citation:
    """Lines of a file and what they contain.

    Attributes:
        path: relative to the top of the cited code.
        first: number of the first line, from 1.
        last: number of the last line.
        quote: the fragment, with single spaces.
    """

    path: str
    first: int
    last: int
    quote: str

    @property
    def place(self) -> str:
        return f"{self.path}:{self.first}" + (f"-{self.last}" if self.last != self.first else "")

    def problem(self) -> str | None:
        """What makes this citation impossible, whatever the code is; None if nothing does."""
        if not 1 <= self.first <= self.last < self.first + LINES:
            return f"cites lines {self.first} to {self.last}; give 1 to {LINES} lines, in ascending order"
        if (n := len(self.quote.split())) > WORDS:
            return f"quotes {n} words; quote at most {WORDS}"
        if len(self.quote) < CHARACTERS:
            return f'quotes only "{self.quote}"; quote at least {CHARACTERS} characters'
        return None


def citations_in(text: str) -> list[Citation]:
    """The citations of a page, in their order."""
    return [
        Citation(m["path"], int(m["first"]), int(m["last"] or m["first"]), " ".join(m["quote"].split()))
        for m in CITATION.finditer(text)
    ]


def unquoted(text: str) -> Iterator[str]:
    """What begins like a citation and has no fragment."""
    whole = {m.start() for m in CITATION.finditer(text)}
    for m in START.finditer(text):
        if m.start() not in whole:
            yield m.group().removeprefix("[`")


def without_citations(text: str) -> str:
    return CITATION.sub(" ", text)


def moved_to(text: str, places: dict[Citation, Citation]) -> str:
    """A page with other line numbers in some of its citations."""

    def written(m: re.Match[str]) -> str:
        (found,) = citations_in(m.group())
        return m.group().replace(f"`{m.group().split('`')[1]}`", f"`{places.get(found, found).place}`", 1)

    return CITATION.sub(written, text)


def sha256_lines(lines: list[bytes]) -> str:
    """SHA-256 of lines, joined by line feeds."""
    return hashlib.sha256(b"\n".join(lines)).hexdigest()


@dataclass(frozen=True)
class Found:
    """Where a citation is in a version of the code.

    Attributes:
        state: `same`: the lines have the recorded hash, or no hash is recorded and they contain the fragment. `moved`:
            other lines have the recorded hash. `changed`: the lines are others, but contain the fragment. `gone`.
        citation: with the lines of this version; unchanged if it is gone.
        sha256: of these lines; None if it is gone.
        why: for a citation that is gone.
    """

    state: Literal["same", "moved", "changed", "gone"]
    citation: Citation
    sha256: str | None = None
    why: str = ""


def find(citation: Citation, lines: list[bytes] | None, recorded: str | None) -> Found:
    """Looks for the cited lines in a file.

    Args:
        lines: of the file; None if it does not exist.
        recorded: the hash of the cited lines at another commit; None to look only for the fragment in these lines.
    """
    if lines is None:
        return Found("gone", citation, why="the file does not exist")
    first, n = citation.first, citation.last - citation.first + 1
    here = lines[first - 1 : first - 1 + n]
    digest, inside = sha256_lines(here), len(here) == n and contains(here, citation.quote)
    if inside and recorded in (None, digest):
        return Found("same", citation, digest)
    if recorded is not None:
        starts = [i for i in range(len(lines) - n + 1) if sha256_lines(lines[i : i + n]) == recorded]
        if starts:
            start = 1 + min(starts, key=lambda i: abs(i + 1 - first))
            return Found("moved", replace(citation, first=start, last=start + n - 1), recorded)
        if inside:
            return Found("changed", citation, digest)
    return Found("gone", citation, why=_explanation(citation, lines, n))


def contains(lines: list[bytes], quote: str) -> bool:
    """Whether lines contain a fragment, apart from spaces and line breaks."""
    return quote in " ".join(b"\n".join(lines).decode("utf-8", errors="replace").split())


def _explanation(citation: Citation, lines: list[bytes], n: int) -> str:
    if citation.first - 1 + n > len(lines):
        seen = f"the file has only {len(lines)} lines"
    else:
        seen = "these lines do not contain the fragment"
    starts = (i for i in range(len(lines)) if contains(lines[i : i + n], citation.quote))
    start = min(starts, key=lambda i: abs(i + 1 - citation.first), default=None)
    if start is None:
        return f"{seen}, nor does the file"
    while n > 1 and start + 1 < len(lines) and contains(lines[start + 1 : start + n], citation.quote):
        start, n = start + 1, n - 1
    while n > 1 and contains(lines[start : start + n - 1], citation.quote):
        n -= 1
    return f"{seen}; lines {start + 1} to {start + n} do" if n > 1 else f"{seen}; line {start + 1} does"
