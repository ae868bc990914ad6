"""The glossary's places exist, and both languages have the same terms."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACE = re.compile(r"`([^` ]+)` `(\w+)`")


def rows(language):
    """(first term, second term, meaning, (file, name)) of each row."""
    page = (ROOT / "docs" / language / "glossary.md").read_text(encoding="utf-8")
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in page.splitlines() if line.startswith("| ")]
    return [(a, b, meaning, PLACE.fullmatch(place).groups()) for a, b, meaning, place in cells if PLACE.match(place)]


def test_each_place_exists_in_the_code():
    found = rows("en")
    assert len(found) > 80
    missing = [
        (file, name)
        for *_, (file, name) in found
        if not re.search(rf"\b{name}\b", (ROOT / file).read_text(encoding="utf-8"))
    ]
    assert missing == []
    assert len({term for term, *_ in found}) == len(found)


def test_both_languages_have_the_same_terms_and_places():
    english, chinese = rows("en"), rows("zh")
    assert [(zh, en, place) for en, zh, _, place in english] == [(zh, en, place) for zh, en, _, place in chinese]
    assert all(meaning.endswith(".") for _, _, meaning, _ in english)
    assert all(meaning.endswith("。") for _, _, meaning, _ in chinese)
