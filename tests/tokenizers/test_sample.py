"""The training sample: seeded, balanced by language, within the budget, everything when everything fits."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foundry.config import TokenizerParams
from foundry.tokenizers.sample import LanguageShare, Sample, shares

BUDGET = 1_000_000


def corpus(**languages):
    """{language: documents of about 1000 bytes} in a mixed order."""
    rng = random.Random(0)
    out = [(f"{lang}-{i}", lang, rng.randint(900, 1100)) for lang, n in languages.items() for i in range(n)]
    rng.shuffle(out)
    return out


def taken(documents, **params):
    sample = Sample(documents, TokenizerParams(**{"max_train_bytes": BUDGET, **params}))
    chosen = [d for d in documents if sample.takes(d[0], d[1])]
    assert sample.taken == sum(n for _, _, n in chosen)
    return sample, chosen


def by_language(documents):
    sums = {}
    for _, lang, n in documents:
        sums[lang] = sums.get(lang, 0) + n
    return sums


def test_everything_is_taken_when_it_fits():
    documents = corpus(en=300, zh=100)
    sample, chosen = taken(documents)
    assert chosen == documents and sample.taken == sample.bytes == sum(n for _, _, n in documents)


def test_languages_get_even_shares_and_a_small_one_gives_its_rest_to_the_others():
    documents = corpus(en=9000, de=3000, zh=150)
    sums = by_language(taken(documents)[1])
    assert sums["zh"] == by_language(documents)["zh"]
    share = (BUDGET - sums["zh"]) / 2
    for lang in ("en", "de"):
        assert 0.97 * share < sums[lang] <= share


def test_without_balance_languages_keep_their_proportions():
    sums = by_language(taken(corpus(en=9000, de=3000), balance_languages=False)[1])
    assert 0.97 * BUDGET < sum(sums.values()) <= BUDGET and 2.5 < sums["en"] / sums["de"] < 3.5


def test_the_order_of_the_corpus_does_not_matter_and_the_seed_does():
    documents = corpus(en=3000, zh=2000)
    first = {d[0] for d in taken(documents)[1]}
    assert first == {d[0] for d in taken(documents[::-1])[1]} == {d[0] for d in taken(documents)[1]}
    other = {d[0] for d in taken(documents, seed=2)[1]}
    assert other != first and len(other & first) < 0.4 * len(first)  # a fifth by chance


def test_documents_larger_than_the_budget_still_give_one():
    sample, chosen = taken([(str(i), "en", 2_000_000) for i in range(5)])
    assert len(chosen) == 1 and sample.languages() == {"en": LanguageShare(bytes=10_000_000, taken=2_000_000)}


def test_no_documents_give_an_empty_sample():
    assert taken([])[0].taken == 0


@given(st.dictionaries(st.text(max_size=3), st.integers(0, 1000), min_size=1, max_size=8), st.integers(0, 3000))
@settings(max_examples=100, deadline=None)
def test_shares_fill_the_budget_as_evenly_as_the_text_allows(totals, budget):
    given_ = shares(totals, budget)
    assert all(0 <= given_[k] <= totals[k] for k in totals)
    assert min(budget, sum(totals.values())) - len(totals) < sum(given_.values()) <= budget
    short = [k for k in totals if given_[k] < totals[k]]  # those that could take more got the most
    assert all(given_[k] + 1 >= max(given_.values()) for k in short)


@pytest.mark.parametrize("budget", [10_000, 50_000])
def test_the_budget_is_kept_for_documents_of_very_different_sizes(budget):
    rng = random.Random(1)
    documents = [(str(i), "en", int(rng.paretovariate(1.2) * 20)) for i in range(3000)]
    assert taken(documents, max_train_bytes=budget)[0].taken <= budget
