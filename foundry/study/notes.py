"""A study: the folder `study/NAME` with its pages, its pin and the record of its citations. Behind `foundry study`."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

from foundry.config import ConfigError, DataError
from foundry.study import source as pinned
from foundry.study.citations import (
    Citation,
    Found,
    citations_in,
    find,
    moved_to,
    unquoted,
    without_citations,
)
from foundry.study.source import Code, Commit, Source, Unpacked, open_code, read_source, reader
from foundry.utils.files import make_folder, write_json, write_text
from foundry.utils.records import Record

STUDIES = "study"
PAGES = ("overview.md", "architecture.md", "core-insights.md", "code-reading-log.md", "references.md")
RECORD = "citations.json"
SUMMARY = "## 摘要"  # the section of overview.md with the summary in Chinese
MIN_WORDS, MIN_CITATIONS, MIN_SUMMARY = 1500, 25, 150  # English words, different citations, Chinese characters
OURS = re.compile(r"`(foundry/[\w/]+\.py)")  # a file of Foundry that a page names


class Row(Record):
    """A citation in the record: its place (`path:lines`), the fragment, and the SHA-256 of the lines."""

    place: str
    quote: str
    sha256: str

    def written(self) -> str:
        """As it is in the pages."""
        return f'[`{self.place}`] "{self.quote}"'


class Recorded(Record):
    """`citations.json`: the citations of a study, and the pin that their hashes belong to."""

    pin: str
    citations: list[Row]


@dataclass
class Checked:
    """What a check found.

    Attributes:
        words: English words outside of code and citations.
        citations: number of different citations.
        resolved: whether they were looked up in the code.
        problems: what makes the notes wrong; each is a sentence that names its page or citation.
        drift: what a newer version does to the citations, if one was given.
    """

    name: str
    words: int = 0
    citations: int = 0
    resolved: bool = False
    problems: list[str] = field(default_factory=list)
    drift: list[Found] = field(default_factory=list)


def studies(root: Path) -> list[str]:
    """The names of all studies of a project."""
    return sorted(p.name for p in (root / STUDIES).glob("*") if p.is_dir())


def add(root: Path, name: str, repository: str, licence: str, pin: dict[str, str]) -> list[Path]:
    """Pins a project, and begins those pages that do not exist yet.

    Args:
        pin: the keys of `source.toml` that pin the code, from `pin_commit` or `pin_sdist`.

    Returns:
        The files that were written.

    Raises:
        ConfigError: if the project is pinned already, or a value is impossible.
    """
    folder = root / STUDIES / name
    if (folder / pinned.NAME).exists():
        raise ConfigError(f"{folder} is pinned already: `foundry study update {name}` moves the pin to another commit")
    try:
        source = Source(name=name, repository=repository, licence=licence, **pin)
    except ValueError as e:
        raise ConfigError(f"the source of {name} is not valid: {e}") from None
    make_folder(folder)
    write_text(folder / pinned.NAME, source.toml())
    written = [folder / pinned.NAME]
    for page in PAGES:
        if not (folder / page).exists():
            title = page.removesuffix(".md").replace("-", " ")
            write_text(folder / page, f"# {name}: {title}\n" + (f"\n{SUMMARY}\n" if page == PAGES[0] else ""))
            written.append(folder / page)
    return written


def check(root: Path, name: str, where: Path | None = None, against: str | None = None) -> Checked:
    """Checks a study: without the code, its pages against its record; with it, each citation.

    Args:
        where: a clone that has the pinned commit, or the unpacked archive; None to check without the code.
        against: a newer revision of the clone, or the folder of a newer unpacked archive, for the drift.

    Raises:
        ConfigError: if there is no such study, or `where` does not have the code.
        DataError: if `source.toml` is not valid, or the code is not the pinned one.
    """
    folder = _folder(root, name)
    source = read_source(folder)
    pages, found = _pages(folder), Checked(name)
    if source.name != name:
        found.problems.append(f"{pinned.NAME} names {source.name}, but the folder is {name}")
    if missing := [page for page in PAGES if page not in pages]:
        found.problems.append(f"missing pages: {', '.join(missing)}")
    cited = _cited(pages, found.problems)
    found.citations = len(cited)
    _depth(pages, found)
    for page, text in pages.items():
        for path in sorted(set(OURS.findall(text))):
            if not (root / path).is_file():
                found.problems.append(f"{page} names {path}, which does not exist in Foundry")
    records = _records(folder, source, found.problems)
    for citation in sorted(cited - records.keys() if records else ()):
        found.problems.append(f'{citation.place} "{citation.quote}" is not recorded: run `foundry study update {name}`')
    for citation in sorted(records.keys() - cited):
        found.problems.append(f'{citation.place} "{citation.quote}" is recorded, but no page cites it any more')
    if where is None:
        return found
    lines = reader(open_code(source, where))
    for citation in sorted(cited):
        there = find(citation, lines(citation.path), None)
        if there.state == "gone":
            found.problems.append(f'{citation.place} "{citation.quote}": {there.why}')
        elif citation in records and there.sha256 != records[citation]:
            found.problems.append(f"{citation.place}: its recorded hash is not that of the pinned lines")
    found.resolved = True
    if against is not None:
        newer = reader(_newer(source, where, against))
        found.drift = [find(c, newer(c.path), records.get(c)) for c in sorted(cited)]
    return found


def update(root: Path, name: str, where: Path, pin: dict[str, str] | None = None) -> list[Found]:
    """Records the hash of the lines of each citation, and moves the pin if a new one is given.

    With a new pin, citations whose lines have moved get their new line numbers in the pages.

    Args:
        where: a clone or an unpacked archive that has the (new) pinned code.
        pin: the keys of `source.toml` that pin other code, from `pin_commit` or `pin_sdist`.

    Returns:
        What each citation became; nothing was written for `same`.

    Raises:
        ConfigError: if there is no such study, or `where` does not have the code.
        DataError: if a citation cannot be resolved; nothing is written.
    """
    folder = _folder(root, name)
    source = read_source(folder)
    old: dict[Citation, str] = {}
    if pin is not None:
        old = _records(folder, source, [])
        kept = source.model_dump(include={"name", "repository", "licence"})
        source = Source(**kept, **pin)
    problems: list[str] = []
    pages = _pages(folder)
    cited = _cited(pages, problems)
    lines = reader(open_code(source, where))
    found = [find(c, lines(c.path), old.get(c)) for c in sorted(cited)]
    problems += [f'{f.citation.place} "{f.citation.quote}": {f.why}' for f in found if f.state == "gone"]
    if problems:
        listed = "".join(f"\n  - {p}" for p in problems)
        raise DataError(f"{name}: nothing was written, because these citations cannot be resolved:{listed}")
    places = {c: f.citation for c, f in zip(sorted(cited), found, strict=True) if f.state == "moved"}
    for page, text in pages.items():
        if (moved := moved_to(text, places)) != text:
            write_text(folder / page, moved)
    write_text(folder / pinned.NAME, source.toml())
    rows = sorted({(f.citation, f.sha256 or "") for f in found})
    record = Recorded(pin=source.pin, citations=[Row(place=c.place, quote=c.quote, sha256=h) for c, h in rows])
    write_json(folder / RECORD, record.model_dump())
    return found


def _folder(root: Path, name: str) -> Path:
    folder = root / STUDIES / name
    if not folder.is_dir():
        known = ", ".join(studies(root)) or "none"
        raise ConfigError(f"there is no study of {name}; there are: {known}. `foundry study add` begins one")
    return folder


def _pages(folder: Path) -> dict[str, str]:
    return {p.name: p.read_text(encoding="utf-8") for p in sorted(folder.glob("*.md"))}


def _cited(pages: dict[str, str], problems: list[str]) -> set[Citation]:
    """All different citations; those that are malformed are added to the problems."""
    cited = set()
    for page, text in pages.items():
        for citation in citations_in(text):
            if problem := citation.problem():
                problems.append(f"{page}: {citation.place} {problem}")
            cited.add(citation)
        problems += [f"{page}: {place} has no quoted fragment behind it" for place in unquoted(text)]
    return cited


def _depth(pages: dict[str, str], found: Checked) -> None:
    """Counts, and compares with what a study must have at least."""
    text = "\n".join(without_citations(t) for t in pages.values())
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found.words = len(re.findall(r"[A-Za-z][\w'-]*", prose))
    summary = re.search(rf"^{SUMMARY}$(.*?)(?=^## |\Z)", pages.get(PAGES[0], ""), re.DOTALL | re.MULTILINE)
    characters = len(re.findall(r"[\u4e00-\u9fff]", summary[1])) if summary else 0
    for what, n, least in (
        ("English words", found.words, MIN_WORDS),
        ("citations", found.citations, MIN_CITATIONS),
        (f"Chinese characters below {SUMMARY} in {PAGES[0]}", characters, MIN_SUMMARY),
    ):
        if n < least:
            found.problems.append(f"{n} {what}; a study has at least {least}")


def _records(folder: Path, source: Source, problems: list[str]) -> dict[Citation, str]:
    """{citation: hash of its lines}; a record that is missing or of another pin is added to the problems."""
    path, how = folder / RECORD, f"`foundry study update {folder.name} --source DIR` writes it"
    if not path.exists():
        problems.append(f"{RECORD} does not exist: {how}")
        return {}
    record = Recorded.read(path, how, DataError)
    if record.pin != source.pin:
        problems.append(f"{RECORD} is of {record.pin}, but {pinned.NAME} pins {source.pin}: {how}")
    return {citation: row.sha256 for row in record.citations for citation in citations_in(row.written())}


def _newer(source: Source, where: Path, against: str) -> Code:
    if source.commit:
        return Commit.find(where, against)
    if not Path(against).is_dir():
        raise ConfigError(f"--against {against} is no folder: give the folder of a newer, unpacked archive")
    return Unpacked(Path(against), source.folder)
