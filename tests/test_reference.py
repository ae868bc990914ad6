"""The generated pages are those of the code: every key, every command and every public name, in both languages."""

import re
from importlib import import_module

import pytest
from toy import ROOT

from docs.site import reference
from foundry.config import describe

AGAIN = "run: python -m docs.site.reference"


@pytest.fixture(scope="module")
def generated():
    return reference.pages()


def test_the_pages_are_up_to_date_and_every_text_has_a_translation(generated):
    texts, missing = generated
    assert not missing, f"docs/site/chinese.yaml lacks a translation of {missing}; then {AGAIN}"
    stale = [str(p.relative_to(ROOT)) for p, text in texts.items() if p.read_text(encoding="utf-8") != text]
    assert len(texts) == 6 and not stale, f"{stale}: {AGAIN}"


def test_every_key_is_a_row_with_its_default_and_its_range(generated):
    page = generated[0][reference.DOCS / "en/configuration.md"]
    rows = dict(re.findall(r"^\| `([^`]+)` \| (.*) \|$", page, re.MULTILINE))
    assert list(rows) == [p.key for p in describe()] and len(rows) > 300
    assert rows["train.lr"].startswith("`0.003` | number (0, 100] | ")
    assert rows["train.schedule"].startswith("`wsd` | `wsd`, `cosine`, `linear`, `constant` | ")
    assert rows["serving.draft"].startswith("`null` | text or `null` | ")
    assert rows["download.sources[].url"].startswith("(required) | ")


def test_every_command_and_option_is_there(generated):
    page = generated[0][reference.DOCS / "en/commands.md"]
    sections = {s.split("\n", 1)[0]: s for s in re.split(r"^#+ foundry ", page, flags=re.MULTILINE)[1:]}
    for name, parser in reference.subparsers(reference.parser()).items():
        for action in (a for a in parser._actions if a.option_strings and "--help" not in a.option_strings):
            assert action.option_strings[-1] in sections[name], (name, action.option_strings)
    assert len(sections) > 25


def test_no_translation_is_left_of_a_text_that_is_gone():
    words = reference.Words("zh")
    words.of = lambda text: words.missing.append(text) or text
    reference.configuration(words), reference.commands(words), reference.api(words)
    assert not set(reference.table("chinese.yaml")) - set(words.missing)


def test_every_public_name_is_on_the_page(generated):
    page = generated[0][reference.DOCS / "en/api.md"]
    named = re.findall(r"^::: (\S+)$", page, re.MULTILINE)
    assert len(named) == len(set(named)) > 80
    for path in named:
        module, name = path.rsplit(".", 1)
        assert hasattr(import_module(module), name), path
