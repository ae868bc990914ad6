"""Generation equals the full forward pass, streams whole characters, and refuses what makes no sense."""

import io

import pytest
import torch

from foundry.config import ModelConfig
from foundry.inference import Generator, Sampling
from foundry.inference.sampling import choose, probabilities
from foundry.models import MiniLLM


@pytest.fixture(scope="module")
def generator(tokenizer):
    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=48))
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
        logits[generator._barred] = float("-inf")
        assert int(logits.argmax()) == token
        tokens.append(token)
    assert len(got) == 30 and len(set(got)) > 3


def test_generation_goes_on_past_the_context_from_its_newer_half(generator):
    ids = generator.tokenizer.encode("The salt", bos=True)
    got = list(generator.generate_ids(ids, max_new_tokens=100, temperature=0))
    assert len(got) == 100
    tokens = [*ids, *got]
    full = 48
    with torch.no_grad():  # the first token after the context was full sees its newer half alone
        logits = generator.model(torch.tensor([tokens[full + 1 - 24 : full + 1]]))[0][0, -1]
    logits[generator._barred] = float("-inf")
    assert int(logits.argmax()) == tokens[full + 1]


@pytest.mark.parametrize("seed", range(6))
def test_a_stream_joins_to_the_whole_and_never_cuts_a_character(generator, seed):
    options = {"prompt": "The", "max_new_tokens": 60, "temperature": 3.0, "seed": seed}
    pieces = list(generator.stream(**options))
    assert "".join(pieces) == generator.generate_text(**options)
    assert len(pieces) > 5


def test_bytes_of_one_character_come_out_together(generator):
    ids = generator.tokenizer.encode("a🙂b日")
    assert len(ids) > 6  # spelt in bytes
    assert list(generator._pieces(iter(ids))) == [*"a🙂b日"]
    assert "".join(generator._pieces(iter(ids[:-1]))) == generator.tokenizer.decode(ids[:-1])


def test_the_seed_decides_and_no_global_generator_moves(generator):
    before = torch.get_rng_state()
    texts = [generator.generate_text(prompt="The", max_new_tokens=20, seed=s) for s in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(before, torch.get_rng_state())


def test_control_symbols_are_never_generated(generator):
    tokens = [t for s in range(20) for t in generator.generate_ids([1], max_new_tokens=40, temperature=5.0, seed=s)]
    assert len(tokens) > 200 and not any(generator.tokenizer.is_control(t) or t == 0 for t in tokens)


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(0.7, 0, 1.0), (1.0, 5, 1.0), (1.0, 0, 0.6), (1.3, 20, 0.8), (1.0, 1, 1.0), (1.0, 0, 1e-6)])
def test_probabilities_equal_those_of_transformers(temperature, top_k, top_p):
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(200, generator=torch.Generator().manual_seed(1))
    expected = TemperatureLogitsWarper(temperature)(None, logits[None])
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    torch.testing.assert_close(probabilities(logits, Sampling(temperature, top_k, top_p)), expected[0].softmax(-1), atol=1e-6, rtol=1e-5)


def test_ties_with_the_kth_token_are_all_kept():
    p = probabilities(torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), Sampling(top_k=2))
    assert (p > 0).tolist() == [False, True, True, True, False]


def test_draws_follow_the_distribution():
    logits, how = torch.tensor([0.0, 1.0, 2.0, -1.0]), Sampling(temperature=0.9, top_p=0.97)
    g = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([choose(logits, how, g) for _ in range(4000)]), minlength=4) / 4000
    assert (counts - probabilities(logits, how)).abs().max() < 0.03


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"temperature": -0.1}, "temperature must be"), ({"temperature": float("nan")}, "temperature must be"), ({"top_p": 1.5}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 0.0}, "top_p must lie"), ({"top_k": -1}, "top_k must be"), ({"top_k": 1.5}, "top_k must be"), ({"max_new_tokens": 0}, "max_new_tokens must be"),
        ({"prompt": "salt " * 200}, "fit the context of 48"),
    ],
)  # fmt: skip
def test_bad_values_are_refused_with_their_rule_before_anything_runs(generator, options, told):
    with pytest.raises(ValueError, match=told):
        generator.stream(**{"prompt": "The", **options})


def test_a_foreign_tokenizer_is_refused(tokenizer):
    model = MiniLLM(ModelConfig(vocab_size=399, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, max_seq_len=16))
    with pytest.raises(ValueError, match="399 tokens, the tokenizer 400"):
        Generator(model, tokenizer, "cpu")


def test_a_conversation_sets_values_tells_mistakes_and_ends(generator):
    out = io.StringIO()
    generator.interactive_generate(io.StringIO("/temperature 0\n/top_p 7\n/nothing\nThe salt\n/tokens x\n/quit\n"), out)
    text = out.getvalue()
    assert "temperature = 0.0" in text and "error: top_p must lie" in text and "error: invalid literal" in text
    assert generator.generate_text(prompt="The salt", max_new_tokens=120, temperature=0) in text
    generator.interactive_generate(io.StringIO(""), out)
