"""Trainings side by side divide the machine: no core or GPU is in two shares, and none is left over."""

import os

import pytest

from flows.runner import StageProcess
from flows.shares import WHOLE_MACHINE, shares


@pytest.mark.parametrize("n", [2, 3, 4, 7, 8])
def test_every_core_and_gpu_is_in_one_share(monkeypatch, n):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4, 12)))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", ", ".join(map(str, range(8))))
    found = shares(n)
    assert sorted(c for s in found for c in s.cores) == list(range(4, 12))
    assert sorted(g for s in found for g in s.gpus) == list("01234567")
    assert {len(s.cores) for s in found} <= {8 // n, -(-8 // n)}
    assert all(s.env == {"CUDA_VISIBLE_DEVICES": ",".join(s.gpus)} for s in found)


def test_more_shares_than_cores_have_one_each_and_without_a_gpu_none_is_named(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [set(s.cores) for s in shares(3)] == [{0}, {1}, {0}]
    assert all(s.env == {} for s in shares(3))
    assert shares(1) == [WHOLE_MACHINE]


def test_a_stage_uses_only_the_cores_of_its_share(toy):
    one = min(os.sched_getaffinity(0))
    (toy / "todo-one").write_text("cores")
    lines = []
    StageProcess("one", toy, cores=frozenset({one})).execute(lines.append)
    assert f"cores {{{one}}}" in lines
