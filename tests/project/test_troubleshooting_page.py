"""The page of error messages quotes messages that the code has, once each."""

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GAP = "\x00"  # a value in a message


def messages():
    """Every text of the package, with a gap for each value; parts that are added with + or joined are one text."""

    def text(node):
        if isinstance(node, ast.Constant):
            return node.value if isinstance(node.value, str) else GAP
        if isinstance(node, ast.JoinedStr):
            return "".join(text(part) for part in node.values)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            return text(node.left) + text(node.right)
        return GAP

    for room in ("foundry", "stages", "flows"):
        for file in (ROOT / room).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
                    yield text(node)


@pytest.fixture(scope="module")
def known():
    return {t for t in messages() if len(t) > 10}


def quoted(language):
    page = (ROOT / "docs" / language / "troubleshooting.md").read_text(encoding="utf-8")
    return [re.sub(r"^``? ?| ?``?$", "", line[4:]) for line in page.splitlines() if line.startswith("### ")]


def found(message, known):
    """`…` is a value, or a text beside one."""
    parts = message.split("…")
    pattern = re.compile(".*?".join(map(re.escape, parts)), re.DOTALL)
    return any(max(parts, key=len) in text and pattern.search(text) for text in known)


def test_each_quoted_message_is_one_of_the_code_and_quoted_once(known):
    english = quoted("en")
    assert len(english) > 50 and max(Counter(english).values()) == 1
    assert [message for message in english if not found(message, known)] == []
    assert all(len(max(message.split("…"), key=len)) >= 12 for message in english)


def test_both_languages_quote_the_same_messages():
    assert quoted("zh") == quoted("en")


def test_a_message_that_the_code_does_not_have_is_found_out(known):
    assert found("dim must be divisible by n_heads: …", known)
    assert not found("dim must be divisible by n_layers: …", known)
    assert not found("tokenizer.vocab_size (…) is too large for … bytes of text: the smallest possible", known)
