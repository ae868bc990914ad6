"""Each page has the same sections, commands, tables, diagrams and numbers in both languages."""

import re
from collections import Counter
from decimal import Decimal

import pytest
from pages import PAGES
from toy import ROOT

# Comments, and what the reader fills in or reads in his own language.
OWN = r" *#.*|(?<=<)[^>\n]*(?=>)|(?<=lang: )\w+|(?<=--why )\"[^\"]*\""
LABELS = r'"[^"]*"|\|[^|\n]*\|'
NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])(\d{1,3}(?:,\d{3})+|\d+)(\.\d+)?(?![A-Za-z_])( thousand million| million| ?万| ?亿)?"
)
UNITS = {"thousand million": 10**9, "million": 10**6, "万": 10**4, "亿": 10**8, "": 1}


def numbers(prose):
    """Numbers with a fraction and those of three digits: small ones may be words in a language."""
    found = Counter()
    for whole, fraction, unit in NUMBER.findall(prose):
        value = Decimal(whole.replace(",", "") + fraction) * UNITS[unit.strip()]
        if fraction or value >= 100:
            found[value] += 1
    return found


def shape(path):
    """What a page has besides prose: levels of headings, code, diagrams, tables as (rows, columns), images, numbers."""
    text = (ROOT / path).read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    rows = [line.replace(r"\|", "").count("|") for line in prose.splitlines() if line.startswith("|")]
    return {
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "code": [re.sub(OWN, "", code) for kind, code in blocks if kind != "mermaid"],
        "diagrams": [re.sub(LABELS, "", code) for kind, code in blocks if kind == "mermaid"],
        "tables": rows,
        "images": re.findall(r"!\[[^]]*\]\(([^)]*)\)", prose),
        "points": len(re.findall(r"^- ", prose, re.MULTILINE)),
        "numbers": numbers(prose),
    }


def test_both_languages_have_the_same_pages():
    assert {p.name for p in (ROOT / "docs/en").glob("*.md")} == {p.name for p in (ROOT / "docs/zh").glob("*.md")}


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_the_same_sections_commands_tables_and_numbers_in_both(page):
    english, chinese = shape(page), shape(PAGES[page])
    assert english["headings"]
    for part, expected in english.items():
        assert chinese[part] == expected, part
