"""Near duplicates against a brute force of its own, in quality and in the promises that hold exactly."""

import os
import random
import subprocess
import sys
from functools import cache

import pytest

from foundry.data import dedup
from foundry.data.dedup import NearDuplicates, exact_key, jaccard, shingles
from foundry.data.rules import units

THRESHOLD = 0.7


def find(texts, threshold=THRESHOLD):
    near = NearDuplicates()
    for t in texts:
        near.add(units(t))
    return near.find(texts.__getitem__, threshold)


@cache
def grams(text):
    """Written apart from the code under test: word 5-grams as tuples."""
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
    # Precision: every dropped document has the similarity that is told to an earlier document that stays.
    for i, (j, s) in found.items():
        assert j < i and j not in found
        assert s == pytest.approx(similarity(family[i], family[j])) and s >= THRESHOLD
    # Recall: of the similar pairs hardly one is left among those that stay.
    left = [(i, j) for i, j, _ in pairs if i not in found and j not in found]
    assert len(left) <= 0.05 * len(pairs)
    assert not [(i, j) for i, j, s in pairs if s >= 0.9 and i not in found and j not in found]
    assert len(kept) >= 60  # one of each family at least


def test_the_first_in_order_stays(story):
    base = story(1, 100)
    texts = [story(9, 100), base, base + " Tail.", story(8, 100), base.upper()]
    assert {i: j for i, (j, _) in find(texts).items()} == {2: 1, 4: 1}


def test_a_document_near_only_to_a_dropped_one_stays(story):
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


def test_result_does_not_depend_on_batches_or_hash_seed(family, monkeypatch):
    expected = find(family)
    monkeypatch.setattr(dedup, "BATCH", 7)
    assert find(family) == expected
    code = "from rensa import RMinHash as M\nprint(M.digest_matrix_from_token_sets([['a', 'b']], 112, 1).to_rows())"
    seen = {
        subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": s}, capture_output=True, check=True
        ).stdout
        for s in "12"
    }
    assert len(seen) == 1


def test_work_on_templated_text_is_bounded(monkeypatch, story):
    monkeypatch.setattr(dedup, "MAX_CANDIDATES", 3)
    compared = []
    real = dedup.jaccard
    monkeypatch.setattr(dedup, "jaccard", lambda a, b: compared.append(1) or real(a, b))
    base = story(1, 100)
    texts = [changed(random.Random(i), base, 2) for i in range(30)]
    find(texts, threshold=1.0)
    assert 0 < len(compared) <= 3 * len(texts)


def test_exact_key_ignores_case_and_white_space_alone():
    assert exact_key("A  b\nC") == exact_key("a b c")
    assert exact_key("a-b") != exact_key("a+b")


def test_short_documents_have_one_shingle():
    assert shingles(["a", "b"]) == {"a b"}
    assert shingles([]) == {""}
    assert jaccard({"a"}, {"a"}) == 1.0
