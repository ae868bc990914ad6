"""Windows for scoring: every token of the text exactly once, the end symbol never, in every protocol."""

import numpy as np
import pytest

from foundry.data.documents import IGNORE, batches, windows


def scored(documents, seq_len, stride, rows=3):
    """{document: positions that are scored, in some order}, and the least context of a position."""
    seen = {d: [] for d in range(len(documents))}
    for tokens, targets, numbers in batches(windows(documents, seq_len, stride), rows):
        for x, y, d in zip(tokens, targets, numbers, strict=True):
            at = np.flatnonzero(y != IGNORE)
            seen[int(d)] += y[at].tolist()
            assert (x[at][1:] == y[at][:-1]).all() and x.shape[0] <= seq_len
    return seen


@pytest.mark.parametrize(("seq_len", "stride"), [(8, 8), (8, 4), (8, 1), (8, 5), (1, 1), (100, 50)])
def test_each_token_is_scored_once(seq_len, stride):
    # Tokens are unique numbers, so that a token scored twice or never shows.
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
    with pytest.raises(ValueError, match="stride must lie in"):
        windows([], 8, 9)
