"""The points of a search, and the rungs of halving."""

import math

import pytest
from pydantic import ValidationError

from flows.search import Axis, Rung, grid, halving, random_points


def test_a_grid_is_every_combination_once():
    points = grid({"a": Axis(choices=[1, 2, 3]), "b": Axis(choices=["x", "y"])})
    assert len(points) == 6 and len({tuple(p.items()) for p in points}) == 6
    assert points[0] == {"a": 1, "b": "x"} and points[1] == {"a": 1, "b": "y"}


def test_random_points_are_in_range_and_those_of_the_seed():
    space = {
        "lr": Axis(low=1e-4, high=1e-1, log=True),
        "n": Axis(low=2, high=9, integer=True),
        "c": Axis(choices=["a", "b"]),
    }
    points = random_points(space, 300, 1)
    assert points == random_points(space, 300, 1) != random_points(space, 300, 2)
    assert all(1e-4 <= p["lr"] <= 1e-1 and isinstance(p["n"], int) and 2 <= p["n"] <= 9 for p in points)
    below = sum(p["lr"] < math.sqrt(1e-5) for p in points)  # the middle of the orders of magnitude
    assert 110 < below < 190
    assert len(random_points({"c": Axis(choices=["a", "b"])}, 10, 0)) == 2


def test_rungs_end_with_one_trial():
    def rungs(*table):
        return [Rung(trials, {"train.steps": steps}) for trials, steps in table]

    assert halving(9, "train.steps", 100, 3) == rungs((9, 100), (3, 300), (1, 900))
    assert halving(5, "train.steps", 10, 2) == rungs((5, 10), (2, 20), (1, 40))
    assert halving(1, "train.steps", 10, 3) == rungs((1, 10))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"low": 1},
        {"choices": []},
        {"choices": [1], "low": 1, "high": 2},
        {"low": 2, "high": 1},
        {"low": 0, "high": 1, "log": True},
        {"low": 0.4, "high": 0.6, "integer": True},
        {"low": 0, "high": float("inf")},
    ],
)
def test_an_axis_that_says_nothing_or_two_things_is_refused(wrong):
    with pytest.raises(ValidationError):
        Axis(**wrong)
