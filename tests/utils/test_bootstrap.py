"""The draws depend on the seed and the number of documents only; the interval is of the draws that counted."""

import numpy as np
import pytest

from foundry.utils import bootstrap as module
from foundry.utils.bootstrap import bootstrap, bootstrap_counts, percentiles_95


def test_every_draw_has_as_many_documents_as_there_are_and_follows_from_the_seed():
    drawn = bootstrap(lambda at: at, 7, 40, seed=3)
    rng = np.random.default_rng(3)
    assert drawn.shape == (40, 7) and drawn.dtype == np.float64
    assert (drawn == [rng.integers(0, 7, 7) for _ in range(40)]).all()
    assert {len(set(row)) for row in drawn.tolist()} != {7}  # with replacement
    assert (bootstrap(lambda at: at, 7, 40, seed=4) != drawn).any()


@pytest.mark.parametrize("at_a_time", [1, 7, 20, 63, 7 * 40, 1 << 20])
def test_counts_are_those_of_the_same_draws_however_many_exist_at_a_time(monkeypatch, at_a_time):
    monkeypatch.setattr(module, "COUNTS", at_a_time)
    expected = bootstrap(lambda at: np.bincount(at, minlength=7), 7, 40, seed=3)
    parts = list(bootstrap_counts(7, 40, seed=3))
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    assert max(map(len, parts)) == min(40, max(1, at_a_time // 7))


def test_all_statistics_of_one_seed_see_the_same_draws():
    values = np.random.default_rng(0).random((9, 2))
    both = bootstrap(lambda at: values[at].sum(0), 9, 50, seed=1)
    for column in range(2):
        single = bootstrap(lambda at, column=column: values[at, column].sum(), 9, 50, seed=1)
        np.testing.assert_allclose(both[:, column], single, rtol=1e-12)


def test_the_interval_is_that_of_the_draws_in_which_something_was_counted():
    draws = np.arange(1001.0)
    assert percentiles_95(draws) == (25.0, 975.0)
    with_empty = np.insert(draws, [0, 500], np.nan)
    assert percentiles_95(with_empty) == (25.0, 975.0)
