"""Requests join and leave between tokens, share what they have in common, and always end."""

import time

import pytest
import torch
from engines import end_of, finish, ids_of, make_engine, random_model, result, run, text_of, tokens_of

from foundry.config import ConfigError
from foundry.config.sampling import Sampling
from foundry.inference.cache import BLOCK
from foundry.inference.engine import deliver
from foundry.inference.request import Delta, Finished, PromptScores, Request

GREEDY = Sampling(0.0)
CONTEXT = 160


@pytest.fixture(scope="module")
def model():
    return random_model()


@pytest.fixture
def engine(model, tokenizer):
    return make_engine(model, tokenizer)


def request(*ids, n=8, **options):
    return Request((1, *ids), options.pop("sampling", GREEDY), n, **options)


class Counted:
    """A runner that counts what it reads."""

    def __init__(self, engine):
        self.runner, self.pieces, engine.runner = engine.runner, [], self

    def forward(self, pieces):
        self.pieces.append(pieces)
        return self.runner.forward(pieces)

    def __getattr__(self, name):
        return getattr(self.runner, name)


@torch.no_grad()
def test_greedy_tokens_and_log_probabilities_are_those_of_the_full_forward_pass(model, engine):
    (events,) = run(engine, [request(*range(5, 45), n=12, logprobs=3, prompt_logprobs=2)])
    new = tokens_of(events)
    ids = [1, *range(5, 45), *(t.id for t in new)]
    raw = model(torch.tensor([ids]))[0][0]
    expected = raw.log_softmax(-1)
    for i, token in enumerate(new):
        row = expected[40 + i]
        assert raw[40 + i].index_fill(0, torch.tensor(engine.barred), -torch.inf).argmax() == token.id
        assert token.logprob == pytest.approx(row[token.id].item(), abs=1e-4)
        assert [i for i, _ in token.top] == row.topk(3).indices.tolist()
    scores = events[0]
    assert isinstance(scores, PromptScores) and [t.id for t in scores.tokens] == ids[:41]
    assert scores.tokens[0].logprob is None
    for i, token in enumerate(scores.tokens[1:]):
        assert token.logprob == pytest.approx(expected[i][token.id].item(), abs=1e-4) and len(token.top) == 2


@torch.no_grad()
def test_the_token_that_ends_an_answer_has_its_log_probability_too(model, engine):
    ids = [1, *range(5, 45)]
    logits = model(torch.tensor([ids]))[0][0, -1]
    stop = int(logits.index_fill(0, torch.tensor(engine.barred), -torch.inf).argmax())
    for top in (None, 0):
        (events,) = run(engine, [request(*ids[1:], stop_ids=(stop,), logprobs=top)])
        end = end_of(events)
        assert (end.reason, end.stop, ids_of(events)) == ("stop", stop, [])
        if top is None:
            assert end.scored is None
        else:
            assert end.scored.id == stop
            assert end.scored.logprob == pytest.approx(logits.log_softmax(-1)[stop].item(), abs=1e-4)


def test_a_prompt_is_only_scored_when_no_token_is_asked_for(engine):
    (events,) = run(engine, [request(*range(5, 90), n=0, prompt_logprobs=0)])
    scores, end = events
    assert len(scores.tokens) == 86 and (end.reason, end.completion_tokens) == ("length", 0)


def test_32_requests_with_a_common_beginning_compute_it_once(model, tokenizer):
    engine = make_engine(model, tokenizer, 32)
    counted, common = Counted(engine), range(5, 5 + 4 * BLOCK)
    events = run(engine, [request(*common, 300 + i, n=4) for i in range(32)])
    read = sum(len(p.ids) for step in counted.pieces for p in step if p.prompt)
    whole = (1 + len(common)) // BLOCK * BLOCK
    rest = 2 + len(common) - whole
    assert read == whole + 32 * rest
    assert sorted(end_of(e).cached_tokens for e in events) == [0] + [whole] * 31
    later = run(engine, [request(*common, 399, n=4)])[0]
    assert end_of(later).cached_tokens == whole
    assert engine.stats().cached_tokens == 32 * whole


def test_whoever_computed_a_common_beginning_may_vanish(model, tokenizer):
    engine = make_engine(model, tokenizer, 8, step_tokens=BLOCK)
    prompts = [request(*range(5, 5 + 3 * BLOCK), 300 + i, n=4) for i in range(4)]
    expected = [result(events) for events in run(make_engine(model, tokenizer), prompts)]
    events = [[] for _ in prompts]
    answers = [engine.answer(p, e.append) for p, e in zip(prompts, events, strict=True)]
    for answer in answers:
        engine.add(answer)
    deliver(engine.step())
    answers[0].cancel()
    finish(engine)
    assert [result(e) for e in events[1:]] == expected[1:]


def test_the_least_recently_used_blocks_give_way(model, tokenizer):
    engine = make_engine(model, tokenizer, shared_tokens=3 * BLOCK)
    first, second = request(*range(5, 5 + 2 * BLOCK)), request(*range(100, 100 + 2 * BLOCK))

    def cached(r):
        return end_of(run(engine, [r])[0]).cached_tokens

    assert [cached(r) for r in (first, first, second, second, first)] == [0, 64, 0, 64, 32]
    assert engine.stats().cache_tokens <= 3 * BLOCK


def test_what_was_generated_is_not_shared_because_its_bits_are_not_those_of_a_prompt(model, tokenizer):
    engine = make_engine(model, tokenizer)
    (events,) = run(engine, [request(5, n=3 * BLOCK)])
    again = request(5, *ids_of(events), 9, n=4, logprobs=0)
    got = run(engine, [again])[0]
    assert end_of(got).cached_tokens == 0
    assert result(got) == result(run(make_engine(model, tokenizer), [again])[0])


def test_a_long_prompt_delays_nobody(model, tokenizer):
    engine = make_engine(model, tokenizer, step_tokens=2 * BLOCK)
    short, long, late = [], [], []
    engine.add(engine.answer(request(5, n=30), short.append))
    deliver(engine.step())
    engine.add(engine.answer(request(*range(5, 155), n=2), long.append))
    deliver(engine.step())
    engine.add(engine.answer(request(6, n=2), late.append))
    before = len(short)
    while not long:
        deliver(engine.step())
        assert len(short) == before + 1  # a token in every step
        before += 1
        assert late  # the short prompt does not wait until the long one is read
    finish(engine)
    assert len(ids_of(short)) == 30


def test_the_longest_prompt_is_read_however_many_short_ones_come(model, tokenizer):
    engine, long = make_engine(model, tokenizer, 2, step_tokens=BLOCK), []
    engine.add(engine.answer(request(*range(5, 155), n=1), long.append))
    for i in range(40):
        engine.add(engine.answer(request(*range(i + 5, i + 35), n=1), lambda event: None))
        deliver(engine.step())
        if long:
            break
    assert long and i < 10


def test_a_place_is_free_at_once_when_a_request_is_cancelled(model, tokenizer):
    engine, events = make_engine(model, tokenizer, 1), ([], [])
    first = engine.answer(request(5, n=100), events[0].append)
    engine.add(first)
    engine.add(engine.answer(request(6, n=3), events[1].append))
    for _ in range(5):
        deliver(engine.step())
    assert not events[1]
    first.cancel()
    deliver(engine.step())
    assert end_of(events[0]).reason == "cancelled" and end_of(events[0]).completion_tokens == 5
    assert len(tokens_of(events[1])) == 1
    finish(engine)
    first.cancel()
    assert not engine.step() and end_of(events[1]).reason == "length"


def test_a_cancelled_or_late_request_leaves_the_queue_without_having_run(model, tokenizer):
    engine, events = make_engine(model, tokenizer, 1), ([], [], [])
    engine.add(engine.answer(request(5, n=4), events[0].append))
    waiting = engine.answer(request(6), events[1].append)
    engine.add(waiting)
    engine.add(engine.answer(request(7, deadline=time.monotonic() - 1), events[2].append))
    waiting.cancel()
    deliver(engine.step())
    assert [e[0].reason for e in events[1:]] == ["cancelled", "timeout"]
    finish(engine)
    assert end_of(events[0]).reason == "length"


def test_a_deadline_ends_an_answer_with_all_of_its_text(model, tokenizer, monkeypatch):
    """Also with what was held back, because it could have become a stop text."""
    engine, events = make_engine(model, tokenizer), []
    text = text_of(run(engine, [request(5, n=10)])[0])
    r = request(5, n=100, deadline=time.monotonic() + 1000, stop=(text + "never",))
    engine.add(engine.answer(r, events.append))
    for _ in range(10):
        deliver(engine.step())
    assert text_of(events) == ""
    monkeypatch.setattr(time, "monotonic", lambda: r.deadline)
    deliver(engine.step())
    assert (text_of(events), end_of(events).reason) == (text, "timeout")


def test_an_answer_ends_at_a_stop_id_a_stop_text_the_limit_and_the_full_context(model, tokenizer):
    engine = make_engine(model, tokenizer)
    (plain,) = run(engine, [request(5, n=30)])
    ids, text = ids_of(plain), text_of(plain)
    assert (end_of(plain).reason, end_of(plain).stop) == ("length", None)
    at = next(i for i in range(3, 30) if ids[i] not in ids[:i])
    (stopped,) = run(engine, [request(5, n=30, stop_ids=(ids[at],))])
    assert ids_of(stopped) == ids[:at] and (end_of(stopped).reason, end_of(stopped).stop) == ("stop", ids[at])
    assert end_of(stopped).completion_tokens == at + 1
    middle = text[len(text) // 2 : len(text) // 2 + 3]
    (stopped,) = run(engine, [request(5, n=30, stop=("never", middle))])
    assert text_of(stopped) == text[: text.index(middle)] and end_of(stopped).stop == middle
    (full,) = run(engine, [request(5, n=500)])
    assert (end_of(full).reason, end_of(full).completion_tokens) == ("length", CONTEXT - 2)
    (further,) = run(engine, [request(5, n=500, past_context="slide")])
    assert end_of(further).completion_tokens == 500 and ids_of(further)[: CONTEXT - 2] == ids_of(full)


def test_nothing_ends_an_answer_before_its_smallest_length(model, tokenizer):
    engine = make_engine(model, tokenizer)
    ids = ids_of(run(engine, [request(5, n=30)])[0])
    letter = tokenizer.decode(ids[:1])[:1]
    for options in ({"stop_ids": (ids[0],)}, {"stop": (letter,)}):
        early = run(engine, [request(5, n=30, **options)])[0]
        assert end_of(early).completion_tokens <= 5
        late = run(engine, [request(5, n=30, sampling=Sampling(0.0, min_tokens=12), **options)])[0]
        assert end_of(late).completion_tokens > 12


def test_control_symbols_are_never_generated_unless_they_end_the_answer(model, tokenizer):
    engine = make_engine(model, tokenizer, 16)
    hot = Sampling(50.0)
    plain = run(engine, [request(5, n=100, sampling=hot, seed=s) for s in range(16)])
    assert not any(tokenizer.is_control(i) or i == 0 for events in plain for i in ids_of(events))
    ending = run(engine, [request(5, n=100, sampling=hot, seed=s, stop_ids=(2,)) for s in range(16)])
    assert any(end_of(events).stop == 2 for events in ending)
    assert not any(tokenizer.is_control(i) for events in ending for i in ids_of(events))


class Only:
    """A constraint: the answer is one of some texts of tokens."""

    def __init__(self, *texts, vocab_size=400):
        self.texts, self.size = texts, vocab_size

    def start(self):
        return OnlyMatcher(self, [])


class OnlyMatcher:
    def __init__(self, language, ids):
        self.language, self.ids = language, ids

    def _next(self):
        n = len(self.ids)
        return {t[n] for t in self.language.texts if list(t[:n]) == self.ids and len(t) > n}

    @property
    def complete(self):
        return tuple(self.ids) in self.language.texts

    @property
    def over(self):
        return self.complete and not self._next()

    def allowed(self):
        mask = torch.zeros(self.language.size, dtype=torch.bool)
        mask[list(self._next())] = True
        return mask

    def accept(self, token):
        self.ids.append(token)

    def copy(self):
        return OnlyMatcher(self.language, list(self.ids))


def test_a_constraint_decides_what_may_come_and_where_the_answer_may_end(model, tokenizer):
    engine, language = make_engine(model, tokenizer, 8), Only((50, 51, 52), (60,), (50, 61, 62, 63))
    asked = [request(5, sampling=Sampling(5.0), seed=s, constraint=language, stop_ids=(2,)) for s in range(30)]
    got = {(tuple(ids_of(e)), end_of(e).reason) for e in run(engine, asked)}
    assert got == {(text, "stop") for text in language.texts}


def test_the_seed_that_was_drawn_repeats_the_answer(model, tokenizer):
    engine, events = make_engine(model, tokenizer), [[], [], []]
    hot = request(5, n=20, sampling=Sampling(3.0))
    answers = [engine.answer(hot, e.append) for e in events[:2]]
    assert answers[0].seed != answers[1].seed and all(0 <= a.seed < 2**63 for a in answers)
    answers.append(engine.answer(request(5, n=20, sampling=Sampling(3.0), seed=answers[0].seed), events[2].append))
    for answer in answers:
        engine.add(answer)
    finish(engine)
    assert ids_of(events[0]) == ids_of(events[2]) != ids_of(events[1])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (request(*range(5, 5 + CONTEXT)), "161 tokens .* at most 159 fit the context of 160"),
        (request(5, 400), r"must be in \[0, 400\), got 400"),
        (request(5, stop_ids=(-1,)), "got -1"),
        (request(5, sampling=Sampling(logit_bias={400: 1.0})), "400"),
    ],
)
def test_what_this_model_cannot_answer_is_refused(engine, bad, message):
    with pytest.raises(ConfigError, match=message):
        engine.answer(bad, lambda event: None)


def test_damaged_weights_end_the_request_with_an_error_and_later_ones_use_the_repaired_model(tokenizer):
    model = random_model()
    engine = make_engine(model, tokenizer)
    expected = result(run(engine, [request(*range(5, 50))])[0])
    with torch.no_grad():
        model.norm.weight.mul_(float("nan"))
    events = run(engine, [request(*range(5, 50))])[0]
    assert end_of(events).reason == "error" and "weights are damaged" in end_of(events).message
    with torch.no_grad():
        model.norm.weight.copy_(random_model().norm.weight)
    assert result(run(engine, [request(*range(5, 50))])[0]) == expected
    with torch.no_grad():
        model.norm.weight.mul_(-1)
    events = run(engine, [request(*range(5, 50))])[0]
    assert result(events) != expected and end_of(events).cached_tokens == 0


def test_a_step_that_fails_ends_its_requests_and_no_others(model, tokenizer, monkeypatch):
    engine, events = make_engine(model, tokenizer, 2), [[], [], []]
    for i, e in enumerate(events):
        engine.add(engine.answer(request(5 + i, n=4), e.append))
    forward = engine.runner.forward

    def broken(pieces):
        monkeypatch.setattr(engine.runner, "forward", forward)
        raise RuntimeError("out of memory")

    monkeypatch.setattr(engine.runner, "forward", broken)
    finish(engine)
    ends = [end_of(e) for e in events]
    assert [end.reason for end in ends] == ["error", "error", "length"] and "out of memory" in ends[0].message


def test_an_answer_that_fails_ends_alone(model, tokenizer):
    class Broken(Only):
        def start(self):
            matcher = super().start()
            matcher.accept = None  # to call it is a TypeError
            return matcher

    engine, events = make_engine(model, tokenizer), ([], [])
    for r, e in zip((request(5, constraint=Broken((50, 51))), request(6, n=5)), events, strict=True):
        engine.add(engine.answer(r, e.append))
    finish(engine)
    assert [end_of(e).reason for e in events] == ["error", "length"]
    assert "the answer failed: TypeError" in end_of(events[0]).message
    assert engine.free == 4


def test_a_listener_that_fails_loses_its_own_answer_only(model, tokenizer):
    engine, events = make_engine(model, tokenizer), []

    def bad(event):
        if isinstance(event, Delta):
            raise RuntimeError("the client vanished")
        events.append(event)

    good = []
    engine.add(engine.answer(request(5, n=50), bad))
    engine.add(engine.answer(request(6, n=5), good.append))
    finish(engine)
    assert [e.reason for e in events] == ["cancelled"] and events[0].completion_tokens <= 2
    assert isinstance(good[-1], Finished) and good[-1].reason == "length"


def test_the_statistics_count_what_happened(model, tokenizer):
    engine = make_engine(model, tokenizer, 2)
    for i in range(3):
        engine.add(engine.answer(request(*range(5, 45), n=5 + i), lambda event: None))
    deliver(engine.step())
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.slots) == (2, 1, 2) and stats.cache_tokens >= 41
    finish(engine)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.completion_tokens) == (0, 0, 5 + 6 + 7)
    assert stats.prompt_tokens == 41 + 2 * 9 and stats.cached_tokens == 2 * BLOCK
    assert stats.cache_tokens == BLOCK <= stats.cache_size
