"""Places of tokens in a text, for characters that are whole, spelt in bytes, and broken."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.inference.request import Scored
from foundry.serving.scores import LOWEST, TextScores, TokenTexts, chat_scores


@pytest.fixture(scope="module")
def byte_ids(tokenizer):
    return {int(tokenizer.piece(i)[3:5], 16): i for i in range(tokenizer.vocab_size) if tokenizer.is_byte(i)}


@settings(max_examples=150, deadline=None)
@given(
    parts=st.lists(
        st.one_of(st.binary(max_size=4), st.sampled_from(["é".encode(), "水".encode(), b"\xf0\x9f"])), max_size=6
    ),
    words=st.lists(st.integers(3, 399), max_size=6),
)
def test_offsets_are_where_the_tokens_are(parts, words, tokenizer, byte_ids):
    texts = TokenTexts(tokenizer)
    ids = [
        i
        for part, word in zip([*parts, b"", b""], [*words, 300], strict=False)
        for i in [*(byte_ids[b] for b in part), word]
    ]
    text = tokenizer.decode(ids)
    found = TextScores(texts, tokenizer).add([Scored(i, -1.0) for i in ids])
    assert found.text_offset == sorted(found.text_offset) and found.tokens == [texts.of(i)[0] for i in ids]
    for token, offset, i in zip(found.tokens, found.text_offset, ids, strict=True):
        if not tokenizer.is_control(i) and not token.startswith("bytes:"):
            assert text[offset : offset + len(token)] == token


def test_the_bytes_of_a_character_have_the_place_of_the_character(tokenizer, byte_ids):
    ids = [byte_ids[b] for b in "a水é".encode()]
    found = TextScores(TokenTexts(tokenizer), tokenizer).add([Scored(i, -1.0) for i in ids])
    assert found.text_offset == [0, 1, 1, 1, 2, 2]
    assert found.tokens == ["a", "bytes:\\xe6", "bytes:\\xb0", "bytes:\\xb4", "bytes:\\xc3", "bytes:\\xa9"]


def test_parts_continue_each_other(tokenizer):
    texts, ids = TokenTexts(tokenizer), tokenizer.encode("The salt é water")
    scored = [Scored(i, -float(n)) for n, i in enumerate(ids)]
    whole, parts = TextScores(texts, tokenizer).add(scored), TextScores(texts, tokenizer)
    joined = [offset for s in scored for offset in parts.add([s]).text_offset]
    assert joined == whole.text_offset


def test_a_token_without_a_chance_has_a_number_that_json_knows(tokenizer):
    texts = TokenTexts(tokenizer)
    token = Scored(300, float("-inf"), ((300, float("-inf")), (301, -0.5)))
    assert chat_scores(texts, [token]).content[0].logprob == LOWEST
    assert set(TextScores(texts, tokenizer).add([token]).top_logprobs[0].values()) == {LOWEST, -0.5}


def test_control_symbols_are_named_and_have_no_bytes(tokenizer):
    texts = TokenTexts(tokenizer)
    assert texts.of(1) == ("<s>", None) and texts.of(tokenizer.id_of("<|im_end|>")) == ("<|im_end|>", None)
    names = [texts.of(i)[0] for i in range(tokenizer.vocab_size) if not tokenizer.is_byte(i)]
    assert len(set(names)) == len(names)
