"""Each page of the documentation has the same sections, commands and tables in both languages."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"


def shape(path):
    """What a page has besides prose: levels of headings, code without comments, tables as (rows, columns), images."""
    text = path.read_text(encoding="utf-8")
    code = [
        re.sub(
            r" *#.*|(?<=<)[^>\n]*(?=>)|(?<=lang: )\w+|(?<=--why )\"[^\"]*\"", "", block
        )  # comments, and what the reader fills in
        for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        if "►" not in block  # a drawing
    ]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    rows = [line.replace(r"\|", "").count("|") for line in prose.splitlines() if line.startswith("|")]
    return {
        "headings": re.findall(r"^#+(?= )", prose, re.MULTILINE),
        "code": code,
        "tables": rows,
        "images": re.findall(r"!\[[^]]*\]\(([^)]*)\)", prose),
        "points": len(re.findall(r"^- ", prose, re.MULTILINE)),
    }


def test_both_languages_have_the_same_pages():
    assert {p.name for p in (DOCS / "en").glob("*.md")} == {p.name for p in (DOCS / "zh").glob("*.md")}


@pytest.mark.parametrize("page", sorted(p.name for p in (DOCS / "en").glob("*.md")))
def test_a_page_has_the_same_sections_commands_and_tables_in_both(page):
    english, chinese = (shape(DOCS / language / page) for language in ("en", "zh"))
    assert english["headings"]
    for part, expected in english.items():
        assert chinese[part] == expected, part
