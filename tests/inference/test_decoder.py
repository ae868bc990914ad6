"""Decoding with fixed shapes gives the tokens of the ordinary way. Without a graph: the CPU has none."""

import itertools
import threading

import pytest
import torch

from foundry.config import ModelConfig
from foundry.inference import Generator, KVCache
from foundry.inference.decoder import Decoder
from foundry.models import MiniLLM

pytestmark = pytest.mark.numeric
SHAPE = {"vocab_size": 400, "dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "max_seq_len": 48}
VARIANTS = [
    {},
    {"n_kv_heads": 4},
    {"qk_norm": True},
    {"sliding_window": 7},
    {"logit_softcap": 3.0},
    {"tie_embeddings": False},
]


def random_model(**changes):
    torch.manual_seed(0)
    model = MiniLLM(ModelConfig(**SHAPE | changes)).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.3)
    return model


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: next(iter(c), "plain"))
@torch.inference_mode()
def test_every_step_of_each_row_gives_the_logits_of_the_full_forward_pass(changes):
    model, rows = random_model(**changes), 3
    tokens = torch.randint(400, (rows, 48), generator=torch.Generator().manual_seed(1))
    expected = model(tokens)[0]
    decoder = Decoder(model, rows)
    decoder.start()
    model(tokens[:, :20], cache=decoder.cache)
    for t in range(20, 48):
        torch.testing.assert_close(decoder.step(tokens[:, t : t + 1]), expected[:, t], atol=2e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="49 tokens do not fit the cache of 48"):
        decoder.step(tokens[:, :1])


@pytest.fixture
def both(tokenizer):
    """A generator that works in the ordinary way, and one with fixed shapes, of one model."""
    model = random_model()
    ordinary, fixed = Generator(model, tokenizer, "cpu"), Generator(model, tokenizer, "cpu")
    assert not ordinary.fixed_shapes
    fixed.fixed_shapes = True
    return ordinary, fixed


@pytest.mark.parametrize("prompt", [[1], [1, 5, 6, 7, 9], [1] + [9, 8, 7] * 15])
@pytest.mark.parametrize(
    "how", [{"temperature": 0.0}, {"temperature": 0.9, "top_p": 0.9, "seed": 3}], ids=["greedy", "sampled"]
)
def test_the_generator_writes_the_same_tokens_with_fixed_shapes_also_past_the_context(both, prompt, how):
    ordinary, fixed = (list(g.generate_ids(prompt, 120, **how)) for g in both)
    assert fixed == ordinary and len(ordinary) > 40


def test_texts_that_are_written_in_turns_do_not_disturb_each_other(both):
    prompts = [[1, 5, 6], [1, 9], [1, 7, 7, 7]]
    alone = [list(both[0].generate_ids(p, 30, temperature=0.0)) for p in prompts]
    turns = itertools.zip_longest(*(both[1].generate_ids(p, 30, temperature=0.0) for p in prompts))
    together = [[t for t in column if t is not None] for column in zip(*turns, strict=True)]
    assert together == alone and len({tuple(a) for a in alone}) == 3
    assert len(both[1]._idle) == 3  # one for each text, kept for the next ones


def test_texts_that_are_written_by_several_threads_do_not_disturb_each_other(both):
    prompts = [[1, i] for i in range(5, 11)]
    alone = [list(both[0].generate_ids(p, 30, temperature=0.0)) for p in prompts]
    got = [None] * len(prompts)

    def write(i):
        got[i] = list(both[1].generate_ids(prompts[i], 30, temperature=0.0))

    threads = [threading.Thread(target=write, args=(i,)) for i in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone


def test_a_text_that_is_not_read_to_its_end_gives_its_decoder_back(both):
    for _ in range(3):
        tokens = both[1].generate_ids([1, 5], 30, temperature=0.0)
        next(tokens)
        tokens.close()
    assert len(both[1]._idle) == 1


def test_weights_that_change_between_two_texts_are_used(both):
    """In place, as an optimizer changes them; then replaced by others at another address."""
    ordinary, fixed = both
    texts = []
    for change in (lambda w: w, lambda w: w.mul_(-1.5), lambda w: w.clone().mul_(2)):
        with torch.no_grad():
            for block in ordinary.model.layers:
                for p in block.parameters():
                    p.data = change(p.data)
        texts.append(list(fixed.generate_ids([1, 5, 6], 40, temperature=0.0)))
        assert texts[-1] == list(ordinary.generate_ids([1, 5, 6], 40, temperature=0.0))
    assert len({tuple(t) for t in texts}) == 3


@torch.inference_mode()
def test_what_a_text_of_damaged_weights_left_in_the_cache_does_not_reach_the_next_one():
    model = random_model()
    decoder = Decoder(model)
    decoder.start()
    tokens = torch.tensor([[5, 6, 7]])
    expected = model(tokens)[0][0, -1]
    for layer in decoder.cache.layers:
        layer.v.fill_(float("nan"))
    decoder.start()
    model(tokens[:, :2], cache=decoder.cache)
    torch.testing.assert_close(decoder.step(tokens[:, 2:])[0], expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_decoder_leaves_the_model_as_it_was():
    model = random_model()
    tokens = torch.tensor([[5, 6, 7]])
    before = model(tokens)[0]
    decoder = Decoder(model)
    decoder.start()
    decoder.step(tokens[:, :1])
    assert all(b.attention.packed is None and b.ffn.packed is None for b in model.layers)
    assert torch.equal(model(tokens)[0], before)
    assert torch.equal(model(tokens, cache=KVCache(model.cfg, 1))[0], before)
