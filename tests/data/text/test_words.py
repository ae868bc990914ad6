"""Words, tokens and runs of characters: the fast ways give what their plain definitions give, for every script."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.config.corpus import Clean
from foundry.data.clean.normalize import _SUSPECT, _is_suspect
from foundry.data.clean.rules import Rules
from foundry.data.text import runs, tokens
from foundry.data.text.grams import may_repeat, read_words, word_numbers
from foundry.data.text.words import (
    _CHARACTER,
    _GRAM_WORD,
    _TOKEN,
    casefolded,
    gram_words,
    spaced_runs,
    spaced_words,
    spaceless,
    squeezed,
)

PIECES = [
    "the", "The", "don't", "3.50", "U.S.", "...", "_", "-", " ", "  ", "\n", "\n\n\n", "\t", "\x00", "\x1c", "\x85",
    "\xa0", "\u2028", "\u3000", "é", "É", "ß", "ﬁ", "İ", "ı", "Σ", "ΟΔΟΣ", "ǅ", "½", "²", "٣", "–", "“", "Â ", "Ã©",
    "â€™", "привет", "МИР", "中文", "字。", "かな", "ไทย", "हिन्दी", "한국", "e\u0301", "\u0301", "🙂", "𝔸", "\ud800",
    "\u200b",
]  # fmt: skip
TEXT = st.one_of(st.lists(st.sampled_from(PIECES), max_size=40).map("".join), st.text(max_size=30))


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_words_are_the_matches_of_the_pattern(text):
    expected = _GRAM_WORD.findall(text.lower())
    assert gram_words(text) == expected
    words = read_words(["a b", text, "c"])[1]
    assert words.names() == expected and words.spaced == spaced_words(text)
    assert words.chars == sum(map(len, expected))
    assert np.array_equal(words.numbers, word_numbers(expected))


def test_words_of_a_text_with_more_signs_than_are_replaced_one_by_one():
    text = (
        " ".join(f"Wort{chr(c)}{chr(c + 1)}Ende" for c in range(0x2190, 0x2400, 2))
        + " ÀÉÎÕÜ"
        + "".join(map(chr, range(0x410, 0x430)))
    )
    assert gram_words(text) == _GRAM_WORD.findall(text.lower())
    assert casefolded(text) == text.casefold().encode()


@settings(max_examples=500, deadline=None)
@given(TEXT)
def test_text_in_one_case_and_with_one_kind_of_space_is_that_of_python(text):
    assert casefolded(text) == text.casefold().encode("utf-8", "surrogatepass")
    assert squeezed(text) == " ".join(text.split())
    assert spaced_runs(text).split() == text.split() == [x for x in spaced_runs(text).split(" ") if x]
    assert spaceless(text) == len(_CHARACTER.findall(text))
    assert _is_suspect(text) == bool(_SUSPECT.search(text))


@settings(max_examples=300, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5))
def test_tokens_are_counted_like_strings(texts):
    for text, found in zip(texts, tokens.read_tokens(texts), strict=True):
        expected = _TOKEN.findall(text)
        words = [t for t in expected if any(map(str.isalnum, t))]
        alpha = sum(any(map(str.isalpha, t)) for t in expected)
        assert (found.count, found.words, found.alpha) == (len(expected), len(words), alpha)
        assert found.chars == sum(map(len, words))
        ((numbers, lengths),) = tokens.numbered([found])
        assert lengths.tolist() == list(map(len, expected))
        assert (
            len(set(zip(numbers.tolist(), expected, strict=True))) == len(set(expected)) == len(set(numbers.tolist()))
        )
        assert found.among(["the", "中", "nowhere"]) == len({"the", "中"} & set(expected))


class Names(runs.RunTable):
    def __init__(self):
        super().__init__()
        self.names = []

    def add(self, run):
        self.names.append(run.decode())


@pytest.mark.parametrize("block", [8, 40, 1 << 16])
@pytest.mark.parametrize("slot_bits", [1, 20])
def test_equal_runs_have_equal_numbers_whatever_the_size_of_blocks_and_table(monkeypatch, block, slot_bits):
    monkeypatch.setattr(runs, "BLOCK", block)
    monkeypatch.setattr(runs, "_SLOT_BITS", slot_bits)
    table = Names()

    @settings(max_examples=200, deadline=None)
    @given(st.lists(st.text("ab \0é中", max_size=60), max_size=6))
    def check(texts):
        found = table.read([t.encode() for t in texts])
        assert len(found.ends) == len(texts) + 1 and found.ends[-1] == len(found.numbers)
        for text, (start, end) in zip(texts, pairwise(found.ends), strict=True):
            assert [table.names[n] for n in found.numbers[start:end]] == [x for x in text.split(" ") if x]

    check()
    assert len(set(table.names)) == len(table.names) > 50


def test_words_and_tokens_stay_the_same_when_a_full_table_is_replaced(monkeypatch):
    texts = [f"word{i} and more of, them" for i in range(50)]
    words, counted = read_words(texts), tokens.read_tokens(texts)
    monkeypatch.setattr(runs, "MAX_RUNS", 3)
    for text, of_text, of_tokens in zip(texts, words, counted, strict=True):
        assert np.array_equal(read_words([text])[0].numbers, of_text.numbers)
        again = tokens.read_tokens([text])[0]
        assert (again.count, again.words, again.chars) == (of_tokens.count, of_tokens.words, of_tokens.chars)
        assert of_tokens.among(["and", "more", "less"]) == 2  # of the table that was replaced


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=30), max_size=6), st.integers(1, 4), st.integers(2, 5))
def test_documents_whose_ngrams_may_repeat_are_those_in_which_one_does(documents, n, times):
    def repeats(words):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        return any(grams.count(g) >= times for g in grams)

    found = may_repeat([word_numbers(d) for d in documents], n, times)
    assert found >= {i for i, d in enumerate(documents) if repeats(d)}
    assert found <= {i for i, d in enumerate(documents) if len(d) >= times}  # each of the n-grams begins in it


SENTENCES = ["the cat sat with a dog.", "of and to", "Buy now!", "- item", "a a a a", "我们的文字。", "{ }", "..."]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=40).map("\n".join), min_size=1, max_size=8))
def test_documents_are_judged_alike_together_and_alone(texts):
    on = {name: {"enabled": True} for name in ("gopher_quality", "gopher_repetition", "c4", "fineweb")}
    for switches in ({}, on, {"gopher_repetition": {"enabled": True, "max_dup_lines": 1.0, "max_dup_line_chars": 1.0}}):
        rules = Rules(Clean(min_chars=1, max_dup_line_ratio=1.0, **switches), Path())
        together = rules.apply_all([(t, "en") for t in texts])
        for text, judgement in zip(texts, together, strict=True):
            alone = rules.apply(text, "en")
            assert (alone.text, alone.verdict) == (judgement.text, judgement.verdict)
            if not alone.verdict:
                assert judgement.words.names() == alone.words.names() == gram_words(alone.text)
