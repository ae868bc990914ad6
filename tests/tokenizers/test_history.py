"""A conversation that is longer than the context loses its oldest turns, whole, and nothing else."""

import random

import pytest

from foundry.tokenizers.chat import Message, encode_chat
from foundry.tokenizers.history import ROOM, fit_chat, room_for_answer

SYSTEM = Message("system", "Speak of salt.")
TALK = [
    Message("user", "What is the king?"),
    Message("assistant", "The king of the river."),
    Message("user", "And the water?"),
    Message("assistant", "It was ancient."),
    Message("user", "Where is the salt?"),
]


def test_a_conversation_that_fits_is_not_changed(tokenizer):
    talk = [SYSTEM, *TALK]
    ids = encode_chat(tokenizer, talk)
    assert fit_chat(tokenizer, talk, len(ids) + 5, 5) == (ids, 0)
    assert fit_chat(tokenizer, talk, len(ids) + 5, 6).dropped == 2, "one token short"


@pytest.mark.parametrize("system", [[], [SYSTEM], [SYSTEM, SYSTEM]])
def test_the_oldest_turns_go_whole_and_the_system_message_stays(tokenizer, system):
    """At every size: the longest end that begins with a user's message and leaves the room."""
    talk = [*system, *TALK]
    ends = {n: encode_chat(tokenizer, [*system, *TALK[n:]]) for n in (0, 2, 4)}
    seen = set()
    for context in range(len(ends[4]) - 3, len(ends[0]) + 12):
        fitted = fit_chat(tokenizer, talk, context, 8)
        expected = next((n for n in (0, 2) if len(ends[n]) + 8 <= context), 4)
        assert fitted == (ends[expected], expected), context
        seen.add(expected)
    assert seen == {0, 2, 4}


def test_questions_without_an_answer_and_a_greeting_are_turns_too(tokenizer):
    talk = [Message("assistant", "salt " * 20), Message("user", "water " * 20), Message("user", "king"), TALK[1]]
    last = encode_chat(tokenizer, talk[2:], answer=False, open_last=True)
    assert fit_chat(tokenizer, talk, 60, 8, answer=False, open_last=True) == (last, 2)
    assert fit_chat(tokenizer, talk, 10_000).dropped == 0


def test_a_long_conversation_is_encoded_once(tokenizer):
    """Its length decides, not the square of it: a client can send a hundred thousand messages."""
    rng, calls = random.Random(0), 0

    class Counting:
        bos_id, id_of = tokenizer.bos_id, tokenizer.id_of

        def encode(self, text):
            nonlocal calls
            calls += 1
            return tokenizer.encode(text)

    talk = [Message(("user", "assistant")[i % 2], rng.choice(["salt", "king", "the river"])) for i in range(2001)]
    fitted = fit_chat(Counting(), talk, 100)
    assert fitted == fit_chat(tokenizer, talk, 100) and fitted.dropped > 1900
    assert calls < 3 * len(talk)


def test_the_room_of_an_answer_is_at_most_half_the_context():
    assert [room_for_answer(256), room_for_answer(4096), room_for_answer(256, 20)] == [128, ROOM, 20]
    assert room_for_answer(256, 5000) == 128
