"""A conversation on a terminal: values are set and explained, mistakes are reported, and it continues."""

import io

import pytest
import torch

from foundry.config import ConfigError, ModelConfig
from foundry.config.sampling import PARAMETERS, READING
from foundry.inference import Generator
from foundry.inference.conversation import Settings, changed, converse
from foundry.models import MiniLLM


@pytest.fixture(scope="module")
def generator(tokenizer):
    torch.manual_seed(0)
    shape = {"dim": 32, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "max_seq_len": 48}
    model = MiniLLM(ModelConfig(vocab_size=400, **shape))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return Generator(model, tokenizer, "cpu")


def said(generator, *lines, **options):
    out = io.StringIO()
    converse(generator, io.StringIO("".join(f"{line}\n" for line in lines)), out, **options)
    return out.getvalue()


def test_a_conversation_sets_values_reports_mistakes_and_ends(generator):
    out = io.StringIO()
    lines = (
        "/temperature 0\n/top_p 7\n/nothing\nThe salt\\n\n/tokens x\n/tokens 0\n/seed 3\n/show\n"
        + "salt " * 200
        + "\n/quit\nnot read\n"
    )
    converse(generator, io.StringIO(lines), out)
    text = out.getvalue()
    errors = (
        "error: top_p must be",
        "error: tokens must be an integer, got 'x'",
        "error: tokens must be at least 1",
        "error: the prompt has",
    )
    for shown in ("temperature = 0.0", "top_p = 0.95", "seed = 3", "more than the context of 48", *errors):
        assert shown in text
    assert generator.generate_text(prompt="The salt\n", max_new_tokens=120, temperature=0) in text
    converse(generator, io.StringIO(""), out)


def test_every_sampling_parameter_can_be_set(generator):
    lines = {
        "min_p": "0.25", "typical_p": "0.9", "top_n_sigma": "1.5", "dynatemp_range": "0.5", "dynatemp_exponent": "2",
        "top_p_decay": "0.9", "top_p_min": "0.2", "top_p_reset_ids": "5,7", "repetition_penalty": "1.2",
        "presence_penalty": "-0.5", "frequency_penalty": "0.5", "logit_bias": "5=-2,7=1", "min_tokens": "3",
        "bad_words": "salt,sea salt", "temperature": "0.7", "top_k": "40", "top_p": "0.9",
    }  # fmt: skip
    assert set(lines) == {p.name for p in PARAMETERS}
    text = said(
        generator, *(f"/{name} {value}" for name, value in lines.items()), "/seed 1", "/tokens 8", "The", "/show"
    )
    assert "error" not in text
    for shown in ("logit_bias = ((5, -2.0), (7, 1.0))", "top_p_reset_ids = (5, 7)", "min_tokens = 3", "tokens = 8"):
        assert text.count(shown) == 2  # when it was set, and at the end
    how = changed(READING, lines, generator.tokenizer)
    options = {p.name: getattr(how, p.name) for p in PARAMETERS}
    assert generator.generate_text("The", max_new_tokens=8, seed=1, **options) in text


def test_every_sampling_parameter_is_explained(generator):
    text = said(generator, "/parameters")
    assert all(f"/{p.name}: {p.text} It must be {p.rule}." in text for p in PARAMETERS)


def test_words_are_forbidden_at_the_beginning_and_after_a_space(tokenizer):
    how = changed(READING, {"bad_words": "salt,  water"}, tokenizer)
    texts = {tokenizer.decode(ids) for ids in how.bad_words}
    assert texts == {"salt", " salt", "  water", " water"}
    assert changed(how, {"bad_words": ""}, tokenizer) == READING


def test_a_wrong_value_is_reported_and_the_old_one_stays(generator):
    text = said(generator, "/bad_words salt,,", "/logit_bias 5", "/logit_bias 9999=1", "The", "/min_p 2", "/show")
    for shown in ("error: bad_words must be", "error: logit_bias must be a mapping", "error: min_p must be"):
        assert shown in text
    assert "must name token ids in [0, 400), got 9999" in text and "logit_bias = ((9999, 1.0),)" in text


def test_what_cannot_be_continued_is_an_error_and_not_the_end(generator):
    every = ",".join(f"{i}=-100" for i in range(400))
    text = said(generator, "/temperature 0", f"/logit_bias {every}", "/tokens 2", "The", "/seed 4")
    assert "seed = 4" in text


def test_a_conversation_begins_with_the_settings_that_it_gets(generator):
    text = said(generator, "/show", settings=Settings(READING, tokens=7, seed=3))
    assert "temperature = 0.8, top_k = 0, top_p = 0.95, tokens = 7, seed = 3" in text


@pytest.mark.parametrize("value", ["0", "x", "1.5"])
def test_a_number_of_tokens_that_cannot_be_is_refused(tokenizer, value):
    with pytest.raises(ConfigError, match="tokens must be"):
        Settings().changed("tokens", value, tokenizer)


def test_a_conversation_reads_standard_input_by_default(generator, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("/tokens 3\n/seed 1\nThe\n"))
    converse(generator)
    assert capsys.readouterr().out.count("> ") == 4
