"""Duplicates: quality against an independent brute force, and the exact guarantees."""

import os
import random
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundry.data.clean.dedup import (
    BANDS,
    NEIGHBOURS,
    band_keys,
    clusters,
    comparable,
    drop_near,
    equal_pairs,
    exact_key,
    frequent,
    jaccard,
    shingles,
)
from foundry.data.text.grams import read_words, word_numbers
from foundry.data.text.words import gram_words, squeezed

THRESHOLD = 0.7


def compared(text):
    return comparable(text, *read_words([text]))


def pairs_of(texts):
    keys = band_keys([compared(t) for t in texts])
    found = [equal_pairs(lambda b=b: iter([keys[:, b]]), len(texts), 1 << 20, NEIGHBOURS) for b in range(BANDS)]
    return np.unique(np.concatenate(found), axis=0)


def find(texts, threshold=THRESHOLD):
    pairs = pairs_of(texts)

    def compare(i, j):
        return jaccard(*(shingles(compared(texts[k])) for k in (i, j)))

    first = np.arange(len(texts))
    found = drop_near(pairs, np.array([compare(i, j) for i, j in pairs.tolist()]), compare, threshold, first)
    assert np.array_equal(found > 0, first != np.arange(len(texts)))
    return {i: (int(first[i]), float(found[i])) for i in np.flatnonzero(found).tolist()}


@cache
def grams(text):
    """Independent of the code under test: word 5-grams as tuples."""
    words = text.lower().replace(".", "").split()
    return {tuple(words[i : i + 5]) for i in range(len(words) - 4)}


def similarity(a, b):
    x, y = grams(a), grams(b)
    return len(x & y) / len(x | y)


def changed(rng, text, edits):
    words = text.split()
    for i in rng.sample(range(len(words)), edits):
        words[i] = f"changed{rng.randrange(10**6)}"
    return " ".join(words)


@pytest.fixture(scope="module")
def family(story):
    """60 texts, each with 4 variants of 0 to 12 changed words of 150, shuffled."""
    rng = random.Random(5)
    texts = [
        t
        for seed in range(60)
        for base in [story(seed, 150)]
        for t in [base, *(changed(rng, base, n) for n in (1, 2, 4, 12))]
    ]
    rng.shuffle(texts)
    return texts


def test_pairs_agree_with_brute_force(family):
    found = find(family)
    kept = [i for i in range(len(family)) if i not in found]
    pairs = [
        (i, j, s) for i in range(len(family)) for j in range(i) if (s := similarity(family[i], family[j])) >= THRESHOLD
    ]
    assert len(pairs) > 200  # the test has something to find
    # Precision: every dropped document has the reported similarity to an earlier document that is kept.
    for i, (j, s) in found.items():
        assert j < i and j not in found
        assert s == pytest.approx(similarity(family[i], family[j])) and s >= THRESHOLD
    # Recall: of the similar pairs hardly one is left among those that stay.
    left = [(i, j) for i, j, _ in pairs if i not in found and j not in found]
    assert len(left) <= 0.05 * len(pairs)
    assert not [(i, j) for i, j, s in pairs if s >= 0.9 and i not in found and j not in found]
    assert len(kept) >= 60  # one of each family at least


@pytest.mark.parametrize(("planted", "recall"), [(0.4, 0.51), (0.5, 0.84), (0.7, 0.9995)])
def test_recall_at_planted_similarity_is_the_documented_one(story, planted, recall):
    """Pairs of exactly that Jaccard index become candidates as often as 1 - (1 - s^4)^28 says; none is reported
    wrongly."""
    shared, n = 90, 300
    own = round(shared * (1 / planted - 1))  # shingles that only one of the two has
    rng = random.Random(7)
    texts = []
    for i in range(n):
        words = story(10_000 + i, shared + 4).lower().replace(".", "").split()
        first, second = own // 2, own - own // 2
        texts += [" ".join([*(f"x{rng.randrange(10**9)}" for _ in range(first)), *words])]
        texts += [" ".join([*words, *(f"y{rng.randrange(10**9)}" for _ in range(second))])]
    for a, b in zip(texts[::2], texts[1::2], strict=True):
        assert similarity(a, b) == pytest.approx(planted, abs=0.006)
    pairs = {tuple(p) for p in pairs_of(texts).tolist()}
    share = sum((2 * i, 2 * i + 1) in pairs for i in range(n)) / n
    expected = 1 - (1 - planted**4) ** 28
    assert expected == pytest.approx(recall, abs=0.01)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 0.03
    found = find(texts, planted - 0.01)
    assert all(i == j + 1 and i % 2 for i, (j, _) in found.items())  # precision 1


def test_the_first_in_order_is_kept(story):
    base = story(1, 100)
    texts = [story(9, 100), base, base + " Tail.", story(8, 100), base.upper()]
    assert {i: j for i, (j, _) in find(texts).items()} == {2: 1, 4: 1}


def test_a_document_near_only_to_a_dropped_one_is_kept(story):
    rng = random.Random(0)
    a = story(1, 200)
    b = changed(rng, a, 2)
    c = changed(rng, b, 2)
    assert min(similarity(a, b), similarity(b, c)) > 0.88 > 0.85 > similarity(a, c)
    assert list(find([a, b, c], 0.88)) == [1]


def test_unlike_texts_are_kept(story):
    assert find([story(i, 60) for i in range(400)]) == {}


def test_scripts_without_spaces_are_compared_by_characters():
    rng = random.Random(3)
    letters = [chr(0x4E00 + i) for i in range(3000)]
    base = "".join(rng.choices(letters, k=300))
    near = base[:100] + "新" + base[101:]
    other = "".join(rng.choices(letters, k=300))
    assert {i: j for i, (j, _) in find([base, other, near]).items()} == {2: 0}


def test_threshold_is_the_parameters(story):
    base = story(2, 100)
    near = changed(random.Random(1), base, 1)
    s = similarity(base, near)
    assert list(find([base, near], s - 0.01)) == [1]
    assert list(find([base, near], s + 0.01)) == []


def test_keys_do_not_depend_on_batches_or_hash_seed(family):
    words = [word_numbers(gram_words(t)) for t in family]
    keys = band_keys(words)
    assert np.array_equal(np.concatenate([band_keys(words[:7]), band_keys(words[7:])]), keys)
    code = (
        "from foundry.data.clean.dedup import band_keys\nfrom foundry.data.text.grams import word_numbers\n"
        "print(band_keys([word_numbers(list('abcdefgh'))]).tolist())"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": s, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            check=True,
        ).stdout
        for s in "12"
    }
    assert len(seen) == 1


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(1, 7), st.integers(1, 4))
def test_equal_values_are_found_in_any_number_of_passes(values, pieces, limit):
    column = np.array(values, np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    expected = [(values.index(v), i) for i, v in enumerate(values) if values.index(v) < i]
    often = sorted(int(column[values.index(v)]) for v in set(values) if values.count(v) > limit)
    for memory in (1 << 20, 200, 40):
        read = lambda: iter(np.array_split(column, pieces))  # noqa: E731
        assert sorted(map(tuple, equal_pairs(read, len(values), memory).tolist())) == sorted(expected)
        assert sorted(frequent(read, len(values), limit, memory).tolist()) == often


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 15)), max_size=20))
def test_clusters_are_connected_components(edges):
    groups = [{i} for i in range(16)]  # an obvious way: merge sets
    for a, b in edges:
        x, y = (next(g for g in groups if k in g) for k in (a, b))
        if x is not y:
            groups.remove(y)
            x |= y
    expected = [min(next(g for g in groups if i in g)) for i in range(16)]
    assert clusters(np.array(edges, np.int64).reshape(-1, 2), 16).tolist() == expected


def test_exact_key_ignores_only_case_and_white_space():
    assert exact_key(squeezed("A  b\nC")) == exact_key(squeezed("a b c"))
    assert exact_key(squeezed("a-b")) != exact_key(squeezed("a+b"))


def test_short_documents_have_one_shingle():
    two, one = (shingles(word_numbers(words)) for words in (["a", "b"], ["a"]))
    assert len(two) == 1 and len(shingles(word_numbers([]))) == 0
    assert jaccard(one, one) == 1.0 and jaccard(one, two) == 0.0


def test_empty_sets_are_similar_to_nothing():
    none, one = shingles(word_numbers([])), shingles(word_numbers(["a"]))
    assert jaccard(none, none) == 0.0 == jaccard(none, one)


def morse(seed, letters=80, heading=""):
    rng = random.Random(seed)
    signs = ["".join(rng.choices(".-", k=rng.randint(1, 4))) for _ in range(letters)]
    return heading + " ".join(signs)


def test_texts_without_words_are_compared_by_their_signs():
    texts = [morse(1), morse(2), morse(3), morse(1) + " ..."]
    assert not any(gram_words(t) for t in texts)
    assert {i: j for i, (j, _) in find(texts).items()} == {3: 0}
    # A few words among the signs do not make two texts equal; nor do emoji in a row, without any white space.
    assert find([morse(1, heading="Telegram: "), morse(2, heading="Telegram: ")]) == {}
    emoji = ["".join(random.Random(s).choices("😀🎉🚀🌊🍞🎻🧭🪁", k=60)) for s in range(3)]
    assert {i: j for i, (j, _) in find([*emoji, emoji[1]]).items()} == {3: 1}


def test_texts_with_words_are_compared_by_their_words(story):
    text = "| a | b |\n|---|---|\n" + story(4, 60)
    assert np.array_equal(compared(text), word_numbers(gram_words(text)))
    assert np.array_equal(compared("... ---"), word_numbers(list("...---")))


def test_every_two_of_a_small_group_are_candidates():
    column = np.array([7, 3, 7, 7, 3, 7], np.uint64)
    found = equal_pairs(lambda: iter([column]), len(column), 1 << 20, NEIGHBOURS)
    assert sorted(map(tuple, found.tolist())) == [(0, 2), (0, 3), (0, 5), (1, 4), (2, 3), (2, 5), (3, 5)]
    many = equal_pairs(lambda: iter([np.zeros(100, np.uint64)]), 100, 1 << 20, NEIGHBOURS)
    assert len(set(map(tuple, many.tolist()))) == len(many) == 99 + sum(98 - k for k in range(NEIGHBOURS))
    assert (many[:, 0] < many[:, 1]).all()
