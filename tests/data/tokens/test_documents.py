"""Windows for scoring: every token of the text exactly once, the end symbol never, in every protocol."""

import itertools
import math

import numpy as np
import pytest

from foundry.data.tokens.documents import batches, spread_documents, windows
from foundry.data.tokens.shards import Shards
from foundry.utils.targets import IGNORE


def scored(documents, seq_len, stride, rows=3):
    """{document: the targets that are scored, in some order}."""
    seen = {d: [] for d in range(len(documents))}
    for tokens, targets, numbers in batches(windows(documents, seq_len, stride), rows):
        for x, y, d in zip(tokens, targets, numbers, strict=True):
            at = np.flatnonzero(y != IGNORE)
            seen[int(d)] += y[at].tolist()
            assert (x[at][1:] == y[at][:-1]).all() and x.shape[0] <= seq_len
    return seen


@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 4), (8, 1), (8, 5), (1, 1), (100, 50)])
def test_each_token_is_scored_once(seq_len, stride):
    # Tokens are unique numbers, so that a token that is scored twice or never is noticed.
    documents = [
        np.array([1, *range(10 + 100 * d, 10 + 100 * d + n), 2], np.uint16) for d, n in enumerate((0, 1, 7, 8, 9, 40))
    ]
    for d, values in scored(documents, seq_len, stride).items():
        assert sorted(values) == documents[d][1:-1].tolist()


def test_overlap_gives_later_tokens_at_least_the_promised_context():
    document = np.array([1, *range(10, 60), 2], np.uint16)
    for w in windows([document], 8, 4)[1:]:
        assert w.first_scored >= 4


def test_a_stride_beyond_the_window_is_refused():
    with pytest.raises(ValueError, match="stride must be in"):
        windows([], 8, 9)


@pytest.mark.parametrize("share", [1.0, 0.5, 0.25])
def test_the_validation_documents_hold_about_the_tokens_asked_for_and_are_spread_over_the_split(shards, share):
    split = Shards(shards, "train")
    every = [(t, b) for t, b, _ in split.documents()]
    total = sum(e.tokens for e in split.entries)
    documents = spread_documents(split, math.ceil(share * total))
    assert 0.8 * share * total < sum(len(d.tokens) for d in documents) < 1.2 * share * total
    assert (len(documents) == len(every)) == (share == 1.0)
    places = [
        next(i for i, (t, b) in enumerate(every) if np.array_equal(t, d.tokens) and b == d.n_bytes) for d in documents
    ]
    assert places[0] == 0 and len(every) - places[-1] <= 1 / share  # from its beginning to its end
    assert {b - a for a, b in itertools.pairwise(places)} == {round(1 / share)}
