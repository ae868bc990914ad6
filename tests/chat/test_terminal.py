"""`foundry chat`: messages, commands, a full context, and stops, over a scripted backend and over the real engine."""

import io
import json
import os
import signal
import threading

import pytest
import torch
from small_server import engine
from text_backend import TextBackend

import foundry.chat.conversation as conversation
from foundry.chat.conversation import Conversation
from foundry.chat.terminal import Terminal, over_pipe
from foundry.chat.transcript import Speaker
from foundry.config import ConfigError, ModelConfig
from foundry.config.sampling import ANSWERING, Sampling
from foundry.inference.conversation import Settings
from foundry.models import MiniLLM
from foundry.tokenizers.chat import Message, encode_chat, end_of_turn
from foundry.tokenizers.history import Fitted

MODEL = Speaker("tiny", "models:/tiny@champion", "3", "a" * 64, 96)


@pytest.fixture
def backend(tokenizer):
    backend = TextBackend(tokenizer)
    backend.text = "the salt"
    return backend


def begun(backend, tokenizer, context=96, **changes):
    return Conversation(backend, tokenizer, context, **{"settings": Settings(ANSWERING, 40, 7), **changes})


def said(talk, *lines):
    out = io.StringIO()
    Terminal(talk, MODEL, over_pipe(io.StringIO("".join(f"{line}\n" for line in lines)), out), out).run()
    return out.getvalue()


def asked(backend):
    return [request.ids for request, _ in backend.requests]


def test_messages_are_answered_in_their_conversation(backend, tokenizer):
    text = said(begun(backend, tokenizer), "Where is it?", "", "And\\nthe water?")
    assert text.startswith("tiny, version 3 from models:/tiny@champion (weights aaaaaaaaaaaa, context 96 tokens)")
    assert "> Where is it?\nthe salt\n" in text and "> And\\nthe water?\nthe salt\n" in text
    talk = [Message("user", "Where is it?"), Message("assistant", "the salt"), Message("user", "And\nthe water?")]
    assert asked(backend) == [tuple(encode_chat(tokenizer, talk[:1])), tuple(encode_chat(tokenizer, talk))]
    request = backend.requests[0][0]
    assert request.stop_ids == end_of_turn(tokenizer) and request.past_context == "stop"
    assert [r.seed for r, _ in backend.requests] == [7, 8], "one seed each, from the one that was given"


def test_the_system_message_is_set_and_removed(backend, tokenizer):
    said(
        begun(backend, tokenizer, system="Be short."),
        "one",
        "/new",
        "/system Speak of salt.",
        "two",
        "/system",
        "three",
    )
    begins = [tokenizer.decode(ids) for ids in asked(backend)]
    assert "system\nBe short." in begins[0] and "system\nSpeak of salt." in begins[1] and "one" not in begins[1]
    assert "system" not in begins[2] and "two" in begins[2]


def test_mistake_28_no_system_message_is_no_message_and_never_the_word_none(backend, tokenizer):
    """litgpt #2258: a system turn that is missing was rendered as the text None."""
    said(begun(backend, tokenizer), "hello")
    assert asked(backend) == [tuple(encode_chat(tokenizer, [Message("user", "hello")]))]
    for content in (None, 5):
        with pytest.raises(ConfigError, match="must be text"):
            encode_chat(tokenizer, [Message("system", content), Message("user", "hello")])


def test_another_answer_replaces_the_last_one(backend, tokenizer):
    talk = begun(backend, tokenizer)
    text = said(talk, "/regenerate", "Where?", "/regenerate", "/temperature 0", "/regenerate")
    assert "error: there is no message yet" in text and "error: temperature is 0" in text
    assert len(talk.turns) == 1 and len(backend.requests) == 2 and asked(backend)[0] == asked(backend)[1]
    assert [r.seed for r, _ in backend.requests] == [7, 8], "the same seed would give the same text"


def test_a_failure_leaves_the_conversation_as_it_was(backend, tokenizer):
    talk = begun(backend, tokenizer)
    backend.failure = "the logits are NaN"
    assert "error: the logits are NaN" in said(talk, "Where?") and talk.turns == []
    backend.failure = None
    said(talk, "Where?")
    backend.failure = "again"
    before = list(talk.turns)
    assert "error: again" in said(talk, "/regenerate", "And?") and talk.turns == before


def test_a_conversation_is_saved_as_an_example_with_its_origin(backend, tokenizer, tmp_path):
    file = tmp_path / "talk.jsonl"
    talk = begun(backend, tokenizer, system="Be short.")
    text = said(talk, f"/save {file}", "Where\\n?", "/save", f"/save {file}", f"/save {file}")
    assert "nothing to save yet" in text and "give a file" in text and f"{file} exists" in text and "wrote" in text
    (line,) = file.read_text().splitlines()
    record = json.loads(line)
    assert record["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Where\n?"},
        {"role": "assistant", "content": "the salt"},
    ]
    assert record["weights_sha256"] == "a" * 64 and record["version"] == "3"
    (answer,) = record["answers"]
    assert answer["seed"] == 7 and Sampling(**answer["sampling"]) == ANSWERING


def test_every_command_is_explained_and_an_unknown_one_is_a_mistake(backend, tokenizer):
    text = said(begun(backend, tokenizer), "/nothing", "/help", "/top_p 7", "/tokens 9", "/show", "/quit", "not read")
    assert "error: there is no command /nothing" in text and text.count("/regenerate") == 2
    assert "error: top_p must be" in text and "tokens = 9" in text and "not read" not in text
    assert backend.requests == []


def test_ctrl_c_stops_an_answer_and_keeps_what_came(backend, tokenizer):
    backend.text, backend.stop_after = "the salt of the river", 3
    talk, out, before = begun(backend, tokenizer), io.StringIO(), signal.getsignal(signal.SIGINT)
    came = tokenizer.decode(tokenizer.encode(backend.text)[:3])

    def press():
        if came in out.getvalue():
            os.kill(os.getpid(), signal.SIGINT)
        else:
            threading.Timer(0.01, press).start()

    press()
    Terminal(talk, MODEL, over_pipe(io.StringIO("Where?\n"), out), out).run()
    assert backend.requests[0][1].cancelled.is_set() and "[stopped]" in out.getvalue()
    (turn,) = talk.turns
    assert turn.reply.text == came and signal.getsignal(signal.SIGINT) is before

    backend.stop_after = 0
    out.seek(0)
    out.truncate()
    came = "> And?"
    press()
    Terminal(talk, MODEL, over_pipe(io.StringIO("And?\n"), out), out).run()
    assert "[stopped; the message was taken back]" in out.getvalue() and len(talk.turns) == 1


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "max_seq_len": 96}
    return MiniLLM(ModelConfig(vocab_size=400, **shape)).eval()


def test_mistake_27_a_conversation_outgrows_the_context_and_continues(small, tokenizer, monkeypatch):
    """nanochat #581: a long conversation ended in an error. The real engine refuses a prompt that does not fit."""
    system = "Speak of salt."
    with engine(small, tokenizer, slots=1) as worker:
        talk = begun(worker, tokenizer, system=system, settings=Settings(ANSWERING, 12, 1))
        text = said(talk, *[f"question {n}" for n in range(12)])
        assert "error" not in text and len(talk.turns) == 12, "nothing is forgotten that is not sent"
        dropped = [turn.reply.dropped for turn in talk.turns]
        assert dropped == sorted(dropped) and dropped[0] == 0 < dropped[-1] and all(n % 2 == 0 for n in dropped)
        assert f"[the context of 96 tokens is full: the oldest {dropped[-1]} messages were not read, the system" in text
        assert "error: the prompt has" in said(talk, "salt " * 90), "one message that is too long is a mistake"

        planted = lambda tokenizer, messages, *_: Fitted(encode_chat(tokenizer, messages), 0)  # noqa: E731
        monkeypatch.setattr(conversation, "fit_chat", planted)
        assert "error: the prompt has" in said(begun(worker, tokenizer, system=system), *["question"] * 12)


def test_an_answer_that_is_cut_off_says_so(small, tokenizer):
    with engine(small, tokenizer, slots=1) as worker:
        endless = Settings(Sampling(temperature=0, logit_bias=tuple((i, -100.0) for i in end_of_turn(tokenizer))), 5)
        assert "[the answer was cut off: it reached the limit of 5 tokens]" in said(
            begun(worker, tokenizer, settings=endless), "salt"
        )
        endless = Settings(endless.sampling, 4000)
        assert "[the answer was cut off: the context is full]" in said(
            begun(worker, tokenizer, settings=endless), "salt"
        )


def test_the_mask_shows_what_a_training_would_learn(backend, tokenizer):
    backend.text = "the 火 salt"
    talk = begun(backend, tokenizer, system="Be <|im_end|> short.")
    text = said(talk, "/mask", "Where?", "/mask")
    shown = (
        "<s><|im_start|>system\nBe <|im_end|> short.<|im_end|>\n<|im_start|>user\nWhere?<|im_end|>\n"
        "<|im_start|>assistant\n⟦the 火 salt<|im_end|>⟧\n"
    )
    assert shown in text and "would be learnt" in text
    out = io.StringIO()
    Terminal(talk, MODEL, over_pipe(io.StringIO("/mask\n"), out), out, colours=True).run()
    learnt = [part[3:] for part in out.getvalue().split("\x1b[") if part.startswith("32m")]
    assert "".join(learnt) == "the 火 salt<|im_end|>"
