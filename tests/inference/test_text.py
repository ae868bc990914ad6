"""The text of an answer: whole characters, nothing of a stop text, all of the end."""

import random

import pytest

from foundry.inference.text import AnswerText


def parts(tokenizer, ids, stop=()):
    """What each token and the end give; the stop text that was found."""
    text = AnswerText(tokenizer, stop)
    got = []
    for token in ids:
        got.append(text.add(token))
        if text.found is not None:
            return got, text.found
    return [*got, text.end()], None


def test_bytes_of_one_character_come_out_together(tokenizer):
    ids = tokenizer.encode("a🙂b日")
    assert len(ids) > 6  # spelt in bytes
    assert [p for p in parts(tokenizer, ids)[0] if p] == [*"a🙂b日"]


def test_an_unfinished_character_is_left_out_and_never_shown_as_a_replacement(tokenizer):
    ids = tokenizer.encode("ab日")
    for cut in (1, 2):
        assert "".join(parts(tokenizer, ids[:-cut])[0]) == "ab"


def cut_at(text, stop):
    """The definition: what is before the first stop text that is complete, read character by character."""
    for end in range(1, len(text) + 1):
        found = [(text.find(s, 0, end), i) for i, s in enumerate(stop) if s in text[:end]]
        if found:
            at, i = min(found)
            return text[:at], stop[i]
    return text, None


def test_no_part_of_a_stop_text_is_shown_and_nothing_else_is_lost(tokenizer):
    """Texts of two letters, so that beginnings of stop texts are everywhere; each token is one letter."""
    letters = {c: tokenizer.encode(c)[-1] for c in "ab"}
    assert all(tokenizer.decode([i]) == c for c, i in letters.items())
    rng, stopped, held = random.Random(0), 0, 0
    for _ in range(3000):
        text = "".join(rng.choice("ab") for _ in range(rng.randint(0, 12)))
        stop = tuple("".join(rng.choice("ab") for _ in range(rng.randint(1, 5))) for _ in range(rng.randint(1, 3)))
        got, found = parts(tokenizer, [letters[c] for c in text], stop)
        assert ("".join(got), found) == cut_at(text, stop)
        stopped += found is not None
        held += found is None and got[-1] != ""
    assert stopped > 500 and held > 200


@pytest.mark.parametrize("stop", ["🙂", "日b", "a🙂b"])
def test_a_stop_text_may_contain_characters_that_are_spelt_in_bytes(tokenizer, stop):
    ids = tokenizer.encode("xya🙂b日b and more")
    got, found = parts(tokenizer, ids, (stop,))
    assert found == stop and "".join(got) == "xya🙂b日b and more".split(stop)[0]


def test_text_that_must_not_end_yet_is_not_searched(tokenizer):
    a, b = (tokenizer.encode(c)[-1] for c in "ab")
    text = AnswerText(tokenizer, ("ab",))
    assert [text.add(a, watch=False), text.add(b, watch=False), text.add(a), text.add(b)] == ["a", "b", "", ""]
    assert text.found == "ab"
