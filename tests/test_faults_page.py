"""The table of faults names tests that exist, in both languages the same."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def named(language):
    """(file, test or nothing) in the order of the page."""
    text = (ROOT / f"docs/{language}/faults.md").read_text(encoding="utf-8")
    found, file = [], ""
    for path, test in re.findall(r"`(tests/[\w/]+\.py)?(?:::(\w+))?`", text):
        file = path or file
        if path or test:
            found.append((file, test))
    return found


def test_every_row_is_a_test_that_exists():
    rows = named("en")
    assert len(rows) > 25
    for file, test in rows:
        code = (ROOT / file).read_text(encoding="utf-8")
        assert not test or f"def {test}(" in code, (file, test)


def test_both_languages_name_the_same_tests():
    assert named("en") == named("zh")
