"""Generation equals the full forward pass, streams complete characters, and refuses invalid values."""

import random

import pytest
import torch

from foundry.config import ModelConfig
from foundry.inference import Generator, KVCache
from foundry.models import MiniLLM
from foundry.tokenizers.chat import Message, encode_chat


@pytest.fixture(scope="module")
def generator(tokenizer):
    torch.manual_seed(0)
    model = MiniLLM(
        ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=48)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return Generator(model, tokenizer, "cpu")


def test_greedy_with_a_cache_equals_the_full_forward_pass(generator):
    ids = generator.tokenizer.encode("The salt", bos=True)
    got = list(generator.generate_ids(ids, max_new_tokens=30, temperature=0))
    tokens = list(ids)
    for token in got:
        with torch.no_grad():
            logits = generator.model(torch.tensor([tokens]))[0][0, -1]
        logits[list(generator.text.barred)] = float("-inf")
        assert int(logits.argmax()) == token
        tokens.append(token)
    assert len(got) == 30 and len(set(got)) > 3


def test_generation_continues_past_the_context_from_its_newer_half(generator):
    ids = generator.tokenizer.encode("The salt", bos=True)
    got = list(generator.generate_ids(ids, max_new_tokens=100, temperature=0))
    assert len(got) == 100
    tokens = [*ids, *got]
    full = 48
    with torch.no_grad():  # the first token after the context was full sees only its newer half
        logits = generator.model(torch.tensor([tokens[full + 1 - 24 : full + 1]]))[0][0, -1]
    logits[list(generator.text.barred)] = float("-inf")
    assert int(logits.argmax()) == tokens[full + 1]


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_joins_to_the_text_and_never_cuts_a_character(generator, seed):
    options = {"prompt": "The", "max_new_tokens": 60, "temperature": 3.0, "seed": seed}
    pieces = list(generator.stream(**options))
    assert "".join(pieces) == generator.generate_text(**options)
    assert len(pieces) > 5


def test_a_stream_of_any_tokens_joins_to_what_the_tokenizer_decodes(generator):
    """Byte tokens in random order: valid characters, invalid ones, and both beside ordinary pieces."""
    tokenizer, rng = generator.tokenizer, random.Random(0)
    lead = [tokenizer.id_of(f"<0x{b:02X}>") for b in bytes.fromhex("41 C3 A9 E2 96 81 E0 ED A0 F0 9F 99 82 FF 80")]
    other = [i for i in range(tokenizer.vocab_size) if not tokenizer.is_byte(i)]
    replaced = 0
    for _ in range(500):
        ids = [rng.choice(lead) if rng.random() < 0.8 else rng.choice(other) for _ in range(rng.randint(1, 12))]
        stream = tokenizer.stream()
        assert "".join(map(stream.add, ids)) + stream.end() == tokenizer.decode(ids)
        replaced += "\ufffd" in tokenizer.decode(ids)
    assert replaced > 100


def test_the_seed_decides_and_no_global_generator_moves(generator):
    before = torch.get_rng_state()
    texts = [generator.generate_text(prompt="The", max_new_tokens=20, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_control_symbols_are_never_generated(generator):
    tokens = [t for s in range(8) for t in generator.generate_ids([1], max_new_tokens=40, temperature=5.0, seed=s)]
    assert len(tokens) > 200 and not any(generator.tokenizer.is_control(t) or t == 0 for t in tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be"),
        ({"temperature": float("nan")}, "temperature must be"),
        ({"top_p": 1.5}, r"top_p must be a number in \(0, 1\]"),
        ({"top_p": 0.0}, "top_p must be"),
        ({"top_k": -1}, "top_k must be"),
        ({"top_k": 1.5}, "top_k must be"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"top_k": None}, "top_k must be"),
        ({"top_p": "0.5"}, "top_p must be"),
        ({"temperature": None}, "temperature must be"),
        ({"temperature": True}, "temperature"),
        ({"max_new_tokens": 2.5}, "max_new_tokens must be"),
        ({"max_new_tokens": True}, "max_new_tokens must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 1.0}, "seed must be"),
        ({"prompt": "salt " * 200}, r"prompt has \d{3} tokens .* 47 fit the context of 48"),
        ({"prompt": 7}, "prompt must be text or a list of messages, got int"),
        ({"prompt": "a\ud800"}, "lone surrogate"),
    ],
)
def test_bad_values_are_refused_with_their_rule_before_anything_runs(generator, options, message):
    with pytest.raises(ValueError, match=message):
        generator.stream(**{"prompt": "The", **options})


def test_ids_outside_the_vocabulary_are_refused(generator):
    for ids in ([1, 400], [-1]):
        with pytest.raises(ValueError, match=r"must be in \[0, 400\)"):
            generator.generate_ids(ids)
    with pytest.raises(ValueError, match="has 0 tokens"):
        generator.generate_ids([])


def test_a_full_cache_refuses_more(generator):
    cfg = generator.model.cfg
    layer = KVCache(cfg, 1).layers[0]
    kv = torch.zeros(1, cfg.n_kv_heads, cfg.max_seq_len, cfg.head_dim)
    layer.update(kv, kv)
    with pytest.raises(ValueError, match="49 tokens do not fit the cache of 48"):
        layer.update(kv[:, :, :1], kv[:, :, :1])


def test_a_foreign_tokenizer_is_refused(tokenizer):
    model = MiniLLM(
        ModelConfig(vocab_size=399, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, max_seq_len=16)
    )
    with pytest.raises(ValueError, match="399 tokens, the tokenizer 400"):
        Generator(model, tokenizer, "cpu")


def test_the_end_of_a_turn_ends_an_answer_and_never_appears_in_a_continuation(generator):
    """Before there were uses, no symbol but the end of the text could end anything: a chat model never stopped."""
    end = generator.tokenizer.id_of("<|im_end|>")
    assert end in generator.chat.stop_ids and end in generator.text.barred and end not in generator.text.stop_ids
    assert {*generator.chat.stop_ids, *generator.chat.barred} == {*generator.text.stop_ids, *generator.text.barred}
    assert generator.tokenizer.id_of("<|im_start|>") in generator.chat.barred
    likely = {"temperature": 0, "max_new_tokens": 20, "logit_bias": ((end, 100.0),)}
    talk = [Message("system", "Be short."), Message("user", "The salt")]
    assert generator.generate_text(talk, **likely) == ""
    assert len(generator.generate_text("The salt", **likely)) > 10
    assert generator.generate_text(talk, temperature=0, max_new_tokens=8), "it ends only where the model ends it"


def test_an_answer_is_that_of_the_encoded_conversation_and_ends_with_the_context(generator):
    talk = [Message("user", "The salt")]
    ids = encode_chat(generator.tokenizer, talk)
    assert generator.prompt_ids(talk) == ids
    tokens = list(generator.generate_ids(ids, 200, 0, chat=True))
    assert len(ids) + len(tokens) == 48, "it does not slide: the question would be lost"
    assert generator.generate_text(talk, max_new_tokens=200, temperature=0) == generator.tokenizer.decode(tokens)
    long = [Message("user", "water " * 8), Message("assistant", "salt"), *talk]
    with pytest.raises(ValueError, match="fit the context of 48"):
        generator.stream(long)
    assert generator.prompt_ids(long, cut=True) == ids
    for wrong in ([], [("user", "x")], {"user": "x"}):
        with pytest.raises(ValueError, match="text or a list of messages"):
            generator.stream(wrong)
