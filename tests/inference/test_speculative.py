"""Speculation changes how many steps an answer takes, and nothing else."""

import itertools

import pytest
import torch
from engines import end_of, ids_of, make_engine, random_model, result, run
from scipy import stats

from foundry.config import ConfigError
from foundry.config.sampling import Sampling
from foundry.inference.engine import DraftRow
from foundry.inference.request import Request
from foundry.inference.runner import Runner
from foundry.inference.speculative import ModelDrafter, NGramDrafter

SLOTS = 4


class Wrong:
    """Guesses that are nearly always wrong."""

    def propose(self, rows):
        return [[(sum(row.ids) + i) % 400 for i in range(min(5, row.room))] for row in rows]


@pytest.fixture(scope="module")
def model():
    return random_model()


def other_model():
    """A draft model that agrees often, not always: the model's weights with noise."""
    model = random_model()
    torch.manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.02)
    return model


def drafters(model):
    return {
        "ngram": NGramDrafter(),
        "one": NGramDrafter(1, longest=2),
        "same": ModelDrafter(Runner(model, SLOTS)),
        "other": ModelDrafter(Runner(other_model(), SLOTS), tokens=3),
        "wrong": Wrong(),
    }


def requests():
    """Prompts that repeat and prompts that do not, greedy and sampled, with ends of every kind."""
    repeated = [1, *[7, 8, 9, 10, 11, 12] * 12]
    plain = [1, *range(20, 60)]
    out = []
    for i, (ids, how) in enumerate(
        itertools.product((repeated, plain), (Sampling(0.0), Sampling(0.3), Sampling(1.0, repetition_penalty=1.2)))
    ):
        out.append(Request(tuple(ids), how, 25, seed=i, logprobs=2))
        out.append(Request(tuple(ids), how, 110, seed=i, past_context="slide"))
        out.append(Request(tuple(ids), how, 60, seed=i, stop=("e",), stop_ids=(2, 50)))
    return out


@pytest.mark.numeric
@pytest.mark.parametrize("name", drafters(random_model()))
def test_every_answer_is_the_same_bit_for_bit(model, tokenizer, name):
    expected = [result(e) for e in run(make_engine(model, tokenizer, SLOTS), requests())]
    events = run(make_engine(model, tokenizer, SLOTS, drafter=drafters(model)[name]), requests())
    assert [result(e) for e in events] == expected
    drafted, accepted = sum(end_of(e).drafted for e in events), sum(end_of(e).accepted for e in events)
    assert drafted > 20
    low, high = {"ngram": (0.01, 1), "one": (0.01, 1), "same": (0.15, 1), "other": (0.05, 0.99), "wrong": (0, 0.1)}[
        name
    ]
    assert low <= accepted / drafted <= high and (accepted or name == "wrong")


def test_guesses_of_the_model_itself_are_all_accepted_and_save_the_steps(model, tokenizer):
    engine = make_engine(model, tokenizer, SLOTS)
    engine.drafter = ModelDrafter(Runner(model, SLOTS), 4, engine.barred)
    events = []
    engine.add(engine.answer(Request((1, 5, 6), Sampling(0.0), 41), events.append))
    steps = 0
    while not engine.idle:
        for answer, event in engine.step():
            answer.listener(event)
        steps += 1
    end = end_of(events)
    assert (end.completion_tokens, end.drafted, end.accepted) == (41, 32, 32)
    assert steps == 1 + 8  # the prompt and its token; then four guesses and a token of its own in each step
    assert engine.stats().accepted == 32


def test_sampled_tokens_have_the_distribution_of_the_model(model, tokenizer):
    """Chi-square of the first three tokens over a small vocabulary; the second and third are guessed."""
    kept, n = [30, 31, 32], 1000
    others = [i for i in range(400) if i not in kept]
    how = Sampling(10.0, bad_words=tuple((i,) for i in others))
    engine = make_engine(model, tokenizer, 32, drafter=ModelDrafter(Runner(other_model(), 32), 2, others))
    events = run(engine, [Request((1, 5, 6), how, 3, seed=seed) for seed in range(n)])
    counts = dict.fromkeys(itertools.product(kept, repeat=3), 0)
    for e in events:
        counts[tuple(ids_of(e))] += 1
    expected = []
    with torch.no_grad():
        for ids in counts:
            logits = model(torch.tensor([[1, 5, 6, *ids]]))[0][0, 2:5, kept].double() / 10
            p = logits.softmax(-1)
            expected.append(n * torch.stack([p[i, kept.index(t)] for i, t in enumerate(ids)]).prod().item())
    assert min(expected) > 5
    assert stats.chisquare(list(counts.values()), expected, sum_check=False).pvalue > 1e-3
    stats_of = engine.stats()
    assert 0.1 < stats_of.accepted / stats_of.drafted < 0.9  # both ways were taken


@pytest.mark.parametrize(
    ("ids", "guess"),
    [
        ([5, 6, 7, 8, 9, 5, 6], [7, 8, 9, 5]),
        ([1, 2, 3, 7, 1, 2, 4, 1, 2, 3], [7, 1, 2, 4]),  # three tokens in common are better than the nearer two
        ([5, 6, 1, 5, 6, 2, 5, 6], [2, 5, 6]),  # the last occurrence
        ([5, 5, 5, 5], [5]),
        ([5, 6, 7], []),
        ([5], []),
        ([0x00010000, 0, 0x0100, 0x00010000, 0], [0x0100, 0x00010000, 0]),
        ([0x01000000, 0x02, 0x03, 0x0100, 0x0200], []),  # equal bytes between two tokens are not a match
    ],
)
def test_n_grams_are_continued_as_they_were(ids, guess):
    assert NGramDrafter(4).propose([DraftRow(0, ids, 10)]) == [guess]


def test_no_more_tokens_are_guessed_than_are_useful(model):
    ids = [5, 6, 7, 8, 9, 5, 6]
    for drafter in (NGramDrafter(4), ModelDrafter(Runner(model, 1), 4)):
        assert [len(drafter.propose([DraftRow(0, ids, room)])[0]) for room in (0, 1, 2, 9)] == [0, 1, 2, 4]
    full = list(range(3, 159))
    assert [len(ModelDrafter(Runner(model, 1), 8).propose([DraftRow(0, full + [5] * i, 9)])[0]) for i in range(5)] == [
        4, 3, 2, 1, 0,
    ]  # fmt: skip


def test_impossible_settings_are_refused(model):
    with pytest.raises(ConfigError, match="n-grams of 3 to 2"):
        NGramDrafter(longest=2, shortest=3)
    with pytest.raises(ConfigError, match="at least 1 token"):
        ModelDrafter(Runner(model, 1), 0)
