"""What a request gives is a function of the request: the same bits alone, among others, and whatever is shared."""

import random

import pytest
import torch
from engines import VARIANTS, ids_of, make_engine, random_model, result, run

from foundry.config.sampling import Sampling
from foundry.inference.cache import BLOCK
from foundry.inference.engine import Engine, deliver
from foundry.inference.piece import Piece
from foundry.inference.request import Request
from foundry.inference.runner import Runner

pytestmark = pytest.mark.numeric
CONTEXT = 160


def some_requests(n, seed):
    """Many kinds; prompts begin alike, and some are equal."""
    rng = random.Random(seed)
    shared = [rng.randrange(3, 400) for _ in range(CONTEXT)]
    requests = []
    for i in range(n):
        ids = [1, *shared[: rng.randrange(110)], *(rng.randrange(3, 400) for _ in range(rng.choice([0, 1, 5, 30])))]
        how = rng.choice([Sampling(0.0), Sampling(1.0), Sampling(1.5, top_p=0.9, repetition_penalty=1.3)])
        requests.append(
            Request(
                tuple(ids),
                how,
                rng.randrange(1, 40),
                seed=i,
                stop=rng.choice([(), ("e", "the")]),
                stop_ids=(2,),
                logprobs=rng.choice([0, 3]),
                prompt_logprobs=rng.choice([None, None, None, 2]),
                past_context=rng.choice(["stop", "slide"]),
            )
        )
    return requests


@pytest.fixture(scope="module")
def alone(tokenizer):
    """Requests, and what each gives by itself in an engine that shares nothing."""
    model, requests = random_model(), some_requests(40, seed=0)
    return model, requests, [result(run(make_engine(model, tokenizer, 1, shared_tokens=0), [r])[0]) for r in requests]


@pytest.mark.parametrize(
    "options",
    [{}, {"step_tokens": BLOCK}, {"shared_tokens": 0}, {"shared_tokens": 2 * BLOCK}, {"slots": 3}],
    ids=lambda o: "-".join(map(str, *o.items())) if o else "default",
)
def test_every_bit_is_the_same_among_31_others(alone, tokenizer, options):
    model, requests, expected = alone
    engine = make_engine(model, tokenizer, **{"slots": 32, **options})
    got = run(engine, requests)
    assert [result(events) for events in got] == expected
    assert len({tuple(ids_of(events)) for events in got}) > 30
    shares = options.get("shared_tokens") != 0
    assert (engine.stats().cached_tokens > 500) == shares


@pytest.mark.parametrize("seed", range(3))
def test_every_bit_is_the_same_while_others_come_and_go_at_random(alone, tokenizer, seed):
    model, requests, expected = alone
    rng, engine = random.Random(seed), make_engine(model, tokenizer, 8, step_tokens=64, shared_tokens=20 * BLOCK)
    order = rng.sample(range(len(requests)), len(requests))
    events, tickets, cancelled = [[] for _ in requests], {}, set()
    while order or not engine.idle:
        while order and rng.random() < 0.3:
            i = order.pop()
            tickets[i] = engine.answer(requests[i], events[i].append)
            engine.add(tickets[i])
        if tickets and rng.random() < 0.05:
            i = rng.choice(list(tickets))
            tickets[i].cancel()
            cancelled.add(i)
        deliver(engine.step())
    kept = [i for i in range(len(requests)) if i not in cancelled]
    assert [result(events[i]) for i in kept] == [expected[i] for i in kept] and len(kept) > 20
    for i in cancelled:  # what came before the end is the same, too
        _, tokens, _, _ = result(events[i])
        assert tokens == expected[i][1][: len(tokens)]


@pytest.mark.parametrize("changes", VARIANTS, ids=lambda c: next(iter(c), "plain"))
@torch.inference_mode()
def test_logits_are_those_of_the_model_and_the_same_bits_in_every_company(changes):
    model, rng = random_model(**changes), random.Random(0)
    tokens = torch.randint(400, (1, CONTEXT), generator=torch.Generator().manual_seed(1))
    ids, prompt = tokens[0].tolist(), 75

    def read(runner, slot, others):
        """The logits after every token, in pieces that `others` chooses."""
        at, logits, ends = 0, [], dict.fromkeys((s for s in range(8) if s != slot), 0)
        while at < CONTEXT:
            n = (
                min(BLOCK * others.randint(1, 3), prompt - at)
                if at < prompt
                else min(others.choice([1, 1, 4]), CONTEXT - at)
            )
            pieces = [Piece(slot, at, ids[at : at + n], at < prompt, n)]
            for other in others.sample(list(ends), others.randint(0, 7)):
                start = ends[other]
                m = min(others.choice([1, BLOCK, 2 * BLOCK, 5]), CONTEXT - start)
                as_prompt = start % BLOCK == 0 and m > 1
                if m := m if as_prompt else min(m, 1):
                    text = [others.randrange(400) for _ in range(m)]
                    pieces.insert(
                        others.randint(0, len(pieces)), Piece(other, start, text, as_prompt, others.randint(0, 1))
                    )
                    ends[other] += m
            got, place = runner.forward(pieces), 0
            for piece in pieces:
                if piece.slot == slot:
                    logits.append(got[place : place + n])
                place += piece.wanted
            at += n
        return torch.cat(logits)

    class Alone(random.Random):
        """One block or token at a time, and nobody else."""

        def randint(self, low, high):
            return low

        def choice(self, values):
            return values[0]

    runner = Runner(model, 8)
    expected = read(runner, 0, Alone())
    torch.testing.assert_close(expected, model(tokens)[0][0], atol=5e-5, rtol=1e-4)
    for trial in range(8):
        assert torch.equal(read(runner, rng.randrange(8), random.Random(trial)), expected)


@torch.inference_mode()
def test_large_steps_that_several_threads_compute_have_the_same_bits():
    """Wider than what one thread computes by itself, and an odd number of rows."""
    torch.manual_seed(0)
    model = random_model(dim=64, ffn_dim=1000, max_seq_len=256)
    threads = torch.get_num_threads()
    ids = torch.randint(400, (256,), generator=torch.Generator().manual_seed(1)).tolist()
    runner = Runner(model, 9)
    try:
        got = {}
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            others = [Piece(slot, 0, ids[:33], True, 0) for slot in range(1, 9)]
            whole = runner.forward([*others, Piece(0, 0, ids, True, 256)])
            parts = [runner.forward([Piece(0, at, ids[at : at + BLOCK], True, BLOCK)]) for at in range(0, 256, BLOCK)]
            got[n] = whole, torch.cat(parts)
    finally:
        torch.set_num_threads(threads)
    for n, (whole, parts) in got.items():
        assert torch.equal(whole, parts), f"{n} threads"


@pytest.mark.parametrize("drafts", [1, 3, 8])
def test_speculation_changes_no_token_and_no_log_probability(alone, tokenizer, drafts):
    """Drafts that are often right, at random, for greedy and for sampled answers."""
    model, requests, expected = alone
    texts = {r.ids: [*r.ids, *(t.id for t in e[1])] for r, e in zip(requests, expected, strict=True)}

    class Guesses:
        rng = random.Random(0)

        def propose(self, rows):
            found = []
            for row in rows:
                known = [ids for ids in texts if row.ids[: len(ids)] == list(ids)]
                text = texts[max(known, key=len)] if known else []
                right = text[len(row.ids) : len(row.ids) + min(drafts, row.room)]
                found.append([t if self.rng.random() < 0.8 else 7 for t in right])
            return found

    got = run(Engine(Runner(model, 16), tokenizer, drafter=Guesses()), requests)
    assert [result(events) for events in got] == expected
    drafted, accepted = (sum(getattr(events[-1], name) for events in got) for name in ("drafted", "accepted"))
    assert 20 < accepted < drafted


def test_the_same_bits_come_from_a_larger_vocabulary_and_untied_heads(tokenizer):
    class Wide:
        """A tokenizer for ids only."""

        eos_id, vocab_size = 2, 5003

        def is_control(self, token):
            return token in (1, 2)

        def stream(self):
            return self

        def add(self, token):
            return "x"

    model = random_model(vocab_size=5003, tie_embeddings=False, dim=48)
    requests = [Request((1, i, i + 1), Sampling(1.0), 12, seed=i, logprobs=5) for i in range(3, 15)]
    alone = [result(run(make_engine(model, Wide(), 1), [r])[0]) for r in requests]
    assert [result(e) for e in run(make_engine(model, Wide(), 12), requests)] == alone
