"""Decoding with fixed shapes gives the tokens of the ordinary way. Without a graph: the CPU has none."""

import itertools
import random
import threading

import pytest
import torch
from engines import VARIANTS, ids_of, make_engine, random_model, run

from foundry.config.sampling import Sampling
from foundry.inference import Generator
from foundry.inference.engine import Engine
from foundry.inference.piece import Piece
from foundry.inference.request import Request
from foundry.inference.runner import Runner

pytestmark = pytest.mark.numeric
CONTEXT = 160


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: next(iter(c), "plain"))
@torch.inference_mode()
def test_every_step_of_each_row_gives_the_logits_of_the_full_forward_pass(changes):
    """Rows at different positions, not all of them in every step, and slots without a request among them."""
    model, rng = random_model(**changes), random.Random(0)
    tokens = torch.randint(400, (4, CONTEXT), generator=torch.Generator().manual_seed(1))
    expected = model(tokens)[0]
    runner = Runner(model, 6, fixed_shapes=True)
    ends = {0: 20, 2: 70, 3: 150}
    for slot, end in ends.items():
        runner.begin(slot)
        runner.forward([Piece(slot, 0, tokens[slot, :end].tolist(), True, 0)])
    while any(end < CONTEXT for end in ends.values()):
        slots = [s for s, end in ends.items() if end < CONTEXT and rng.random() < 0.7]
        if not slots:
            continue
        rng.shuffle(slots)
        logits = runner.forward([Piece(s, ends[s], [tokens[s, ends[s]].item()], False, 1) for s in slots])
        for row, s in zip(logits, slots, strict=True):
            torch.testing.assert_close(row, expected[s, ends[s]], atol=5e-5, rtol=1e-4)
            ends[s] += 1
    assert set(runner._decoders) >= {1, 4} and set(runner._decoders) <= {1, 2, 4}


def test_the_engine_writes_the_same_tokens_with_fixed_shapes(tokenizer):
    model, rng = random_model(), random.Random(0)
    requests = [
        Request((1, *(rng.randrange(3, 400) for _ in range(rng.randrange(90)))), Sampling(t), 40, seed=i)
        for i, t in enumerate([0.0, 1.0] * 10)
    ]
    fixed = Engine(Runner(model, 6, fixed_shapes=True), tokenizer)
    assert [ids_of(e) for e in run(fixed, requests)] == [
        ids_of(e) for e in run(make_engine(model, tokenizer, 6), requests)
    ]


@pytest.fixture
def both(tokenizer):
    """A generator that works in the ordinary way, and one with fixed shapes, of one model."""
    model = random_model(max_seq_len=48)
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
    for generator in both:
        turns = itertools.zip_longest(*(generator.generate_ids(p, 30, temperature=0.0) for p in prompts))
        together = [[t for t in column if t is not None] for column in zip(*turns, strict=True)]
        assert together == alone and len({tuple(a) for a in alone}) == 3


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


def test_a_text_that_is_not_read_to_its_end_gives_its_place_back(both):
    for generator in both:
        for _ in range(10):  # more than there are places
            tokens = generator.generate_ids([1, 5], 30, temperature=0.0)
            next(tokens)
            tokens.close()
        stats = generator._made.stats()
        assert (stats.running, stats.waiting) == (0, 0)


def test_weights_that_change_between_two_texts_are_used(both):
    """In place, as an optimizer changes them; then replaced by others at another address."""
    ordinary, fixed = both
    texts = []
    for change in (lambda p: None, lambda p: p.mul_(-1.5), lambda p: setattr(p, "data", p.data.clone().mul_(2))):
        with torch.no_grad():
            for block in ordinary.model.layers:
                for p in block.parameters():
                    change(p)
        texts.append(list(fixed.generate_ids([1, 5, 6], 40, temperature=0.0)))
        assert texts[-1] == list(ordinary.generate_ids([1, 5, 6], 40, temperature=0.0))
        assert texts[-1] == list(Generator(ordinary.model, ordinary.tokenizer, "cpu").generate_ids([1, 5, 6], 40, 0.0))
    assert len({tuple(t) for t in texts}) == 3


@torch.inference_mode()
def test_what_a_text_of_damaged_weights_left_in_the_cache_does_not_reach_the_next_one():
    model = random_model()
    tokens = torch.tensor([[5, 6, 7]])
    expected = model(tokens)[0][0, -1]
    runner = Runner(model, 1, fixed_shapes=True)
    runner.cache.kv.fill_(float("nan"))
    runner.begin(0)
    runner.forward([Piece(0, 0, [5, 6], True, 0)])
    logits = runner.forward([Piece(0, 2, [7], False, 1)])
    torch.testing.assert_close(logits[0], expected, atol=2e-5, rtol=1e-5)


@torch.inference_mode()
def test_a_runner_leaves_the_model_as_it_was():
    model = random_model()
    before = model(torch.tensor([[5, 6, 7]]))[0]
    for fixed in (False, True):
        runner = Runner(model, 2, fixed_shapes=fixed)
        runner.begin(0)
        runner.forward([Piece(0, 0, [5, 6, 7], True, 1)])
        runner.forward([Piece(0, 3, [8], False, 1)])
        assert torch.equal(model(torch.tensor([[5, 6, 7]]))[0], before)
