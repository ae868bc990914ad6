"""Every sampling parameter equals an independent implementation: transformers', or the definition in plain NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import generation

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import PARAMETERS, Sampling
from foundry.inference.sampling import Sampler, draw, log_probabilities

pytestmark = pytest.mark.numeric

V = 200
PROMPT = [1, 5, 9, 5, 30]
OUTPUT = [7, 9, 7, 7, 40]


def row(seed=0, size=V, scale=3.0):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * scale


def sampler(size=V, prompt=PROMPT, output=(), seed=0, end_ids=(2,), barred=(), matcher=None, **options):
    made = Sampler(
        Sampling(**options),
        prompt,
        vocab_size=size,
        generator=torch.Generator().manual_seed(seed),
        end_ids=end_ids,
        barred=barred,
        matcher=matcher,
    )
    for token in output:
        made.accept(token)
    return made


def of_transformers(logits, processors, ids=(*PROMPT, *OUTPUT)):
    ids = torch.tensor([ids])
    scores = logits[None].clone()
    for processor in processors:
        scores = processor(ids, scores)
    return scores[0].softmax(-1)


SINGLE = [
    ({"temperature": 0.7}, lambda: [generation.TemperatureLogitsWarper(0.7)]),
    ({"top_k": 5}, lambda: [generation.TopKLogitsWarper(5)]),
    ({"top_k": 1}, lambda: [generation.TopKLogitsWarper(1)]),
    ({"top_k": 1000}, lambda: [generation.TopKLogitsWarper(1000)]),
    ({"top_p": 0.6}, lambda: [generation.TopPLogitsWarper(0.6)]),
    ({"top_p": 0.999}, lambda: [generation.TopPLogitsWarper(0.999)]),
    ({"top_p": 1e-6}, lambda: [generation.TopPLogitsWarper(1e-6)]),
    ({"min_p": 0.05}, lambda: [generation.MinPLogitsWarper(0.05)]),
    ({"min_p": 1.0}, lambda: [generation.MinPLogitsWarper(1.0)]),
    ({"typical_p": 0.3}, lambda: [generation.TypicalLogitsWarper(0.3)]),
    ({"typical_p": 0.95}, lambda: [generation.TypicalLogitsWarper(0.95)]),
    ({"repetition_penalty": 1.7}, lambda: [generation.RepetitionPenaltyLogitsProcessor(1.7)]),
    ({"repetition_penalty": 0.4}, lambda: [generation.RepetitionPenaltyLogitsProcessor(0.4)]),
    (
        {"logit_bias": {4: 6.0, 8: -3.5}},
        lambda: [generation.SequenceBiasLogitsProcessor([[[4], 6.0], [[8], -3.5]])],
    ),
    (
        {"bad_words": [[3], [7, 40, 11], [40, 12], [8, 13], [30, 7, 9, 7, 7, 40, 17]]},
        lambda: [
            generation.NoBadWordsLogitsProcessor([[3], [7, 40, 11], [40, 12], [8, 13], [30, 7, 9, 7, 7, 40, 17]], 2)
        ],
    ),
    ({"min_tokens": 6}, lambda: [generation.MinNewTokensLengthLogitsProcessor(len(PROMPT), 6, torch.tensor([2]))]),
    ({"min_tokens": 5}, lambda: [generation.MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, torch.tensor([2]))]),
]


@pytest.mark.parametrize(("options", "processors"), SINGLE, ids=[str(options) for options, _ in SINGLE])
def test_a_parameter_equals_that_of_transformers(options, processors):
    changed = 0
    for seed in range(10):
        logits = row(seed)
        got = sampler(output=OUTPUT, **options).distribution(logits)
        torch.testing.assert_close(got, of_transformers(logits, processors()), atol=1e-6, rtol=2e-5)
        changed += not torch.allclose(got, logits.softmax(-1))
    assert changed or options in ({"top_k": 1000}, {"min_tokens": 5})


def test_all_together_are_applied_in_the_order_of_transformers():
    """Through transformers' own chain."""
    config = generation.GenerationConfig(
        do_sample=True,
        temperature=1.4,
        top_k=60,
        top_p=0.93,
        min_p=0.01,
        typical_p=0.9,
        repetition_penalty=1.3,
        bad_words_ids=[[3], [40, 12]],
        sequence_bias=[[[4], 6.0], [[8], -3.5]],
        min_new_tokens=9,
        eos_token_id=2,
    )
    config._eos_token_tensor = torch.tensor([2])
    model = generation.GenerationMixin()
    model.config = type("Config", (), {"is_encoder_decoder": False})()
    processors = model._get_logits_processor(config, input_ids_seq_length=len(PROMPT), device="cpu")
    assert len(processors) == 9
    options = {
        "temperature": 1.4,
        "top_k": 60,
        "top_p": 0.93,
        "min_p": 0.01,
        "typical_p": 0.9,
        "repetition_penalty": 1.3,
        "bad_words": [[3], [40, 12]],
        "logit_bias": {4: 6.0, 8: -3.5},
        "min_tokens": 9,
    }
    sizes = set()
    for seed in range(40):
        logits = row(seed, scale=2.0)
        got = sampler(output=OUTPUT, **options).distribution(logits)
        torch.testing.assert_close(got, of_transformers(logits, processors), atol=1e-6, rtol=2e-5)
        sizes.add(int((got > 0).sum()))
    assert len(sizes) > 10


def reference(logits, *, output=(), **options):
    """The parameters that transformers does not have, by their definition, one token at a time, in float64."""
    scores = [float(x) for x in logits]
    for token in range(len(scores)):
        count = list(output).count(token)
        scores[token] -= options.get("presence_penalty", 0) * (count > 0)
        scores[token] -= options.get("frequency_penalty", 0) * count
    temperature = options.get("temperature", 1.0)
    if spread := options.get("dynatemp_range", 0):
        p = softmax(scores)
        entropy = -sum(x * math.log(x) for x in p if x > 0)
        share = (entropy / math.log(len(p))) ** options.get("dynatemp_exponent", 1.0)
        low = max(0.0, temperature - spread)
        temperature = low + (temperature + spread - low) * share
    scores = [x / temperature for x in scores]
    if n := options.get("top_n_sigma", 0):
        mean = sum(scores) / len(scores)
        deviation = math.sqrt(sum((x - mean) ** 2 for x in scores) / len(scores))
        scores = [x if x >= max(scores) - n * deviation else -math.inf for x in scores]
    if k := options.get("top_k", 0):
        kth = sorted(scores, reverse=True)[min(k, len(scores)) - 1]
        scores = [x if x >= kth else -math.inf for x in scores]
    p, kept, mass = softmax(scores), set(), 0.0
    for i in sorted(range(len(p)), key=lambda i: -p[i]):
        kept.add(i)
        mass += p[i]
        if mass >= options.get("top_p", 1.0):
            break
    return softmax([x if i in kept else -math.inf for i, x in enumerate(scores)])


def softmax(scores):
    weights = [math.exp(x - max(scores)) for x in scores]
    return [w / sum(weights) for w in weights]


OURS = [
    {"presence_penalty": 1.5},
    {"frequency_penalty": -0.8},
    {"presence_penalty": -2.0, "frequency_penalty": 2.0},
    {"dynatemp_range": 0.5},
    {"dynatemp_range": 3.0, "temperature": 0.8, "dynatemp_exponent": 2.5},
    {"dynatemp_range": 0.3, "temperature": 1.7, "dynatemp_exponent": 0.4},
    {"top_n_sigma": 1.0},
    {"top_n_sigma": 0.25, "temperature": 2.0},
    {"temperature": 0.6, "top_k": 9, "top_p": 0.7},
    {"temperature": 1.8, "top_n_sigma": 2.0, "top_k": 30, "top_p": 0.9, "presence_penalty": 0.5, "dynatemp_range": 0.9},
]


@pytest.mark.parametrize("options", OURS, ids=str)
def test_a_parameter_equals_its_definition(options):
    for seed in range(10):
        logits = row(seed, size=60)
        got = sampler(size=60, output=OUTPUT, **options).distribution(logits)
        assert got.tolist() == pytest.approx(reference(logits, output=OUTPUT, **options), abs=1e-6, rel=1e-4)
        assert not torch.allclose(got, logits.softmax(-1))


def test_penalties_count_only_the_output_and_the_repetition_penalty_the_prompt_too():
    flat = torch.ones(V)
    of_openai = sampler(output=OUTPUT, presence_penalty=1.0, frequency_penalty=0.5)._processed(flat)
    assert {i: float(x) for i, x in enumerate(of_openai) if x != 1} == {7: -1.5, 9: -0.5, 40: -0.5}
    of_hf = sampler(output=OUTPUT, repetition_penalty=2.0)._processed(flat)
    assert set(np.flatnonzero(of_hf == 0.5)) == {*PROMPT, *OUTPUT} and (of_hf != 1).sum() == len({*PROMPT, *OUTPUT})


def test_the_counts_grow_with_the_output():
    tokens = [i % V for i in range(3, 1000, 7)]
    grown = sampler(prompt=[1], output=tokens, frequency_penalty=0.5, repetition_penalty=1.5)
    assert len(set(tokens)) > 100
    expected = [(1 / 1.5 if i in {1, *tokens} else 1) - 0.5 * tokens.count(i) for i in range(V)]
    assert grown._processed(torch.ones(V)).tolist() == pytest.approx(expected, rel=1e-6)


def test_top_p_decays_to_its_minimum_and_is_reset():
    s = sampler(top_p=0.8, top_p_decay=0.5, top_p_min=0.15, top_p_reset_ids=[30])
    seen = [s.top_p]
    for token in (5, 5, 5, 5, 30, 5):
        s.accept(token)
        seen.append(s.top_p)
    assert seen == [0.8, 0.4, 0.2, 0.15, 0.15, 0.8, 0.4]
    s.accept(5)
    expected = sampler(top_p=s.top_p).distribution(row())
    assert torch.equal(s.distribution(row()), expected) and s.top_p == 0.2


def test_without_a_decay_top_p_stays():
    s = sampler(top_p=0.8, top_p_reset_ids=[30], output=[30, 5, 30])
    assert s.top_p == 0.8


def test_ties_with_the_kth_token_are_all_kept_and_ties_at_the_threshold_of_top_p_only_as_needed():
    logits = torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0])
    assert (sampler(5, [1], top_k=2).distribution(logits) > 0).tolist() == [False, True, True, True, False]
    flat = torch.zeros(10)
    assert (sampler(10, [1], top_p=0.35).distribution(flat) > 0).tolist() == [True] * 4 + [False] * 6
    assert (sampler(10, [1], top_p=1e-9).distribution(flat) > 0).sum() == 1


def test_a_tiny_temperature_is_greedy_and_does_not_overflow():
    logits = torch.tensor([1.0, 80.0, 79.0])
    assert {sampler(3, [1], temperature=t).choose(logits) for t in (0, 0.0, 1e-300, 1e-6)} == {1}
    assert sampler(3, [1], temperature=0).distribution(logits).tolist() == [0, 1, 0]
    sure = torch.tensor([0.0, 500.0, 0.0])  # the dynamic temperature of a sure model is its lowest, here 0
    assert sampler(3, [1], temperature=0.5, dynatemp_range=0.5).distribution(sure).tolist() == [0, 1, 0]


def test_a_greedy_choice_regards_what_comes_before_the_temperature_and_draws_no_number():
    s = sampler(temperature=0, bad_words=[[9]], logit_bias={3: 100}, min_tokens=2, end_ids=[3])
    logits = row()
    logits[9] = 50
    before = s.generator.get_state()
    first = s.choose(logits)
    assert first not in (3, 9)
    s.accept(first)
    s.accept(first)
    assert s.choose(logits) == 3 and torch.equal(before, s.generator.get_state())


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2e38])
@pytest.mark.parametrize("options", [{"temperature": 0}, {}, {"top_k": 3, "repetition_penalty": 1.2}])
def test_logits_that_are_not_numbers_are_refused(bad, options):
    with pytest.raises(FoundryError, match="weights are damaged"):
        sampler(2, [1], **options).choose(torch.tensor([1.0, bad]))


def test_an_empty_set_is_an_error_that_says_why():
    with pytest.raises(FoundryError, match="no token is allowed: bad_words, min_tokens"):
        sampler(3, [1], bad_words=[[0], [1]], min_tokens=1).choose(torch.zeros(3))


def test_barred_tokens_are_never_chosen():
    s = sampler(barred=[3, 4], logit_bias={3: 100, 5: 3})
    logits = row()
    assert s.distribution(logits)[[3, 4]].tolist() == [0, 0] and s.distribution(logits)[5] > 0


def test_a_row_is_not_changed():
    logits = row()
    kept = logits.clone()
    sampler(logit_bias={3: 100}, bad_words=[[4]], repetition_penalty=2.0, temperature=0.5, top_p=0.5).choose(logits)
    assert torch.equal(logits, kept)


@pytest.mark.parametrize(
    ("size", "options"),
    [
        (6, {"temperature": 0.9}),
        (40, {"top_p": 0.9, "top_k": 30, "temperature": 1.5}),
        (3000, {}),  # sums of blocks
        (3000, {"min_p": 0.02, "typical_p": 0.97}),
    ],
)
def test_draws_follow_the_distribution(size, options):
    """Chi-square; tokens that are expected less than ten times are counted as one."""
    logits, n = row(3, size, scale=1.5), 20_000
    s = sampler(size, [1], **options)
    p = s.distribution(logits).double().numpy()
    assert check_draws([s.choose(logits) for _ in range(n)], p) > 1e-3


def check_draws(drawn, p):
    """The p-value of the draws under the distribution; none has probability 0."""
    counts, expected = np.bincount(drawn, minlength=len(p)), p / p.sum() * len(drawn)
    assert counts[p == 0].sum() == 0
    rare = expected < 10
    observed = np.append(counts[~rare], counts[rare].sum())
    wanted = np.append(expected[~rare], expected[rare].sum())
    used = wanted > 0
    assert used.sum() > 3
    return chisquare(observed[used], wanted[used]).pvalue


def test_the_check_of_draws_can_fail():
    p = np.array([0.1, 0.2, 0.3, 0.4])
    drawn = [
        draw(np.array([0.1, 0.2, 0.33, 0.37], dtype=np.float32), g) for g in [torch.Generator()] for _ in range(20_000)
    ]
    assert check_draws(drawn, p) < 1e-3


def test_rare_tokens_are_drawn_as_often_as_they_should():
    """What float32 sums would round away: 20,000 tokens of probability 2e-9 beside two likely ones."""
    weights = np.full(20_002, 2e-9, dtype=np.float32)
    weights[[100, 20_001]] = 0.5
    u = [1e-6, 0.4, 0.5 + 1.5e-5, 0.9]
    places = [draw(weights, Fixed(x)) for x in u]
    assert places[1] == 100 and places[3] == 20_001
    total = weights.sum(dtype=np.float64)
    for x, place in zip(u, places, strict=True):
        before = weights[:place].sum(dtype=np.float64) / total
        assert before <= x + 1e-12 and before + weights[place] / total >= x - 1e-12


class Fixed:
    """A generator whose next uniform number is known: `draw` is patched to read it."""

    def __init__(self, u):
        self.u = u


@pytest.fixture(autouse=True)
def fixed_numbers(monkeypatch):
    from foundry.inference import sampling

    real = sampling.uniform
    monkeypatch.setattr(sampling, "uniform", lambda g: g.u if isinstance(g, Fixed) else real(g))


@pytest.mark.parametrize("size", [1, 2, 256, 257, 1000])
def test_a_draw_is_the_inverse_of_the_cumulative_probability(size):
    rng = np.random.default_rng(0)
    weights = rng.random(size).astype(np.float32) * (rng.random(size) < 0.5)
    weights[rng.integers(size)] = 1.0
    cumulative = np.cumsum(weights.astype(np.float64) / weights.sum(dtype=np.float64))
    for u in [0.0, 1 - 2**-53, *rng.random(300)]:
        place = draw(weights, Fixed(u))
        assert weights[place] > 0
        assert (cumulative[place - 1] if place else 0) - 1e-12 <= u <= cumulative[place] + 1e-12


def test_one_number_is_drawn_per_token():
    s, g = sampler(size=3000, top_p=0.9), torch.Generator().manual_seed(0)
    for _ in range(5):
        s.choose(row(size=3000))
        torch.rand((), generator=g, dtype=torch.float64)
    assert torch.equal(s.generator.get_state(), g.get_state())


def test_a_copy_goes_on_independently():
    options = {
        "repetition_penalty": 1.3,
        "frequency_penalty": 0.5,
        "bad_words": [[7, 8]],
        "top_p": 0.99,
        "top_p_decay": 0.95,
    }
    s = sampler(output=OUTPUT, **options)
    before = s.distribution(row(scale=1.0))
    other = s.copy()
    for token in (7, 11, 12, 7):
        other.accept(token)
    assert torch.equal(s.distribution(row(scale=1.0)), before)
    assert torch.equal(
        other.distribution(row(scale=1.0)),
        sampler(output=[*OUTPUT, 7, 11, 12, 7], **options).distribution(row(scale=1.0)),
    )
    assert not torch.equal(other.distribution(row(scale=1.0)), before)


def test_log_probabilities_are_those_of_the_raw_model():
    logits = row(scale=20)
    expected = logits.double().log_softmax(-1)
    one, top = log_probabilities(logits, 17, 5)
    assert one == pytest.approx(float(expected[17]), abs=1e-6)
    best = expected.topk(5)
    assert [i for i, _ in top] == best.indices.tolist()
    assert [x for _, x in top] == pytest.approx(best.values.tolist(), abs=1e-6)
    assert log_probabilities(logits, 17) == (one, ())
    assert [i for i, _ in log_probabilities(torch.zeros(4), 0, 9)[1]] == [0, 1, 2, 3]
    assert [i for i, _ in log_probabilities(torch.zeros(4), 0, 2)[1]] == [0, 1]


@pytest.mark.parametrize("options", [{"logit_bias": {V: 1}}, {"bad_words": [[1, V]]}, {"top_p_reset_ids": [V]}])
def test_ids_outside_the_vocabulary_are_refused(options):
    with pytest.raises(ConfigError, match=rf"must name token ids in \[0, {V}\), got {V}"):
        sampler(**options)
    assert sampler(size=V + 1, **options)


# Properties.

numbers = {
    p.name: st.floats(p.usual[0], p.usual[1], exclude_min=p.low_open and p.usual[0] == p.low)
    for p in PARAMETERS
    if p.kind == "number"
}
rows = st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40).map(torch.tensor)
wild = st.lists(st.floats(max_value=2.0**99, width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=9)


def consistent(options):
    """What the parameters ask of each other: a floor of top_p below it, no dynamic temperature that is greedy."""
    if options.get("temperature", 1) < 1e-5:
        options.pop("dynatemp_range", None)
    return options | {"top_p_min": min(options.get("top_p_min", 1e-6), options.get("top_p", 1))}


samplings = st.fixed_dictionaries({}, optional={**numbers, "top_k": st.integers(0, 50)}).map(consistent)


@settings(max_examples=300, deadline=None)
@given(rows, samplings, st.lists(st.integers(0, 39), max_size=6))
def test_the_set_is_never_empty_and_the_choice_is_in_it(logits, options, output):
    s = sampler(len(logits), [0], [i % len(logits) for i in output], **options)
    p = s.distribution(logits)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5) and (p >= 0).all() and p[s.choose(logits)] > 0


@settings(max_examples=200, deadline=None)
@given(wild.map(lambda logits: torch.tensor([*logits, 0.0])), samplings, st.floats(1e-5, 1e-3))
def test_not_even_wild_logits_and_tiny_temperatures_give_what_is_no_distribution(logits, options, temperature):
    options["temperature"] = temperature if options.get("temperature", 1) < 1 else 1000.0
    p = sampler(len(logits), [0], **options).distribution(logits)
    assert float(p.sum()) == pytest.approx(1, abs=1e-5) and (p >= 0).all()


@settings(max_examples=100, deadline=None)
@given(rows, samplings)
def test_a_parameter_that_is_off_changes_no_bit(logits, options):
    on = sampler(len(logits), [0], **options).distribution(logits)
    off = {p.name: p.off for p in PARAMETERS if p.off is not None and p.name not in options}
    assert len(off) >= 3
    assert torch.equal(sampler(len(logits), [0], **options, **off).distribution(logits), on)


@settings(max_examples=200, deadline=None)
@given(rows, st.sampled_from(["top_p", "top_k", "typical_p", "top_n_sigma", "min_p"]), st.data())
def test_a_looser_value_keeps_every_token_that_a_tighter_one_keeps(logits, name, data):
    of = st.integers(1, 50) if name == "top_k" else numbers[name].filter(bool)
    tight, loose = sorted((data.draw(of), data.draw(of)), reverse=name == "min_p")
    few, many = (sampler(len(logits), [0], **{name: value}).distribution(logits) > 0 for value in (tight, loose))
    assert (many | ~few).all()


@settings(max_examples=100, deadline=None)
@given(rows, samplings)
def test_a_tokens_place_in_the_order_of_probabilities_is_kept(logits, options):
    """No truncation and no temperature makes a less likely token likelier than another that is kept."""
    for name in ("repetition_penalty", "presence_penalty", "frequency_penalty"):
        options.pop(name, None)
    p = sampler(len(logits), [0], **options).distribution(logits)
    kept = p > 0
    order = logits[kept].argsort(stable=True)
    assert (p[kept][order].diff() >= -1e-7).all()
