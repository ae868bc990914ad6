"""The rounds of a benchmark: turns, noisy rounds, figures; and that every script explains itself."""

import argparse
import runpy
import sys
from pathlib import Path

import pytest

from benchmarks import rounds
from benchmarks.rounds import SECONDS, Measure, add_rounds, machine, number, take_turns
from foundry.utils import device

ROOT = Path(__file__).resolve().parents[2]
RATE = Measure("MB/s", more_is_better=True)


def scripted(log=None, **sides):
    """Sides that return the given values one after another."""

    def side(name, values):
        left = iter(values)

        def turn():
            if log is not None:
                log.append(name)
            return next(left)

        return turn

    return {name: side(name, values) for name, values in sides.items()}


def test_the_sides_take_turns_and_every_second_round_begins_with_the_last():
    log = []
    done = take_turns(scripted(log, a=[1.0, 1.1, 1.2], b=[2, 2, 2], c=[3, 3, 3]), 3, SECONDS)
    assert "".join(log) == "abccbaabc"
    assert done.values == {"a": [1.0, 1.1, 1.2], "b": [2, 2, 2], "c": [3, 3, 3]} and done.repeated == 0


@pytest.mark.parametrize(("measure", "slow"), [(SECONDS, 2.0), (RATE, 0.5)])
def test_a_disturbed_round_is_reported_and_repeated_for_every_side(capsys, measure, slow):
    """A round in which one side took twice as long; the other side's turn of that round does not count either."""
    done = take_turns(scripted(a=[1.0, 1.0, 1.0, 1.1], b=[1.01, slow, 1.02, 1.03]), 3, measure)
    assert done.values == {"a": [1.0, 1.0, 1.1], "b": [1.01, 1.02, 1.03]}
    assert done.repeated == 1
    printed = capsys.readouterr().out
    assert printed.count("noisy: b was 9") + printed.count("noisy: b was 10") == 1 and "repeated" in printed
    assert done.verdict() == "3 rounds, 1 repeated"


def test_the_round_that_is_furthest_behind_is_repeated_first():
    done = take_turns(scripted(a=[1.0, 1.5, 3.0, 1.1, 1.2]), 3, SECONDS)
    assert done.values == {"a": [1.0, 1.1, 1.2]} and done.repeated == 2


def test_a_spread_of_a_quarter_is_not_noise_and_one_above_it_is():
    assert take_turns(scripted(a=[100.0, 125.0]), 2, SECONDS).repeated == 0
    assert take_turns(scripted(a=[100.0, 80.0]), 2, RATE).repeated == 0
    assert take_turns(scripted(a=[100.0, 126.0, 101.0]), 2, SECONDS).repeated == 1
    assert take_turns(scripted(a=[100.0, 79.0, 99.0]), 2, RATE).repeated == 1


def test_a_machine_that_stays_noisy_ends_the_repetitions_and_is_reported_with_the_figures(capsys):
    done = take_turns(scripted(a=[1.0, 2.0, 3.0, 4.0], steady=[1.0] * 4), 2, SECONDS)
    assert done.repeated == 2 and done.values["a"] == [1.0, 4.0]
    done.print("title", base="steady")
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "2 rounds, 2 repeated; NOISY, do not quote: the spread of a is over 25%"


def test_one_round_claims_nothing_about_noise():
    done = take_turns(scripted(a=[1.0], b=[9.0]), 1, SECONDS)
    assert done.verdict() == "1 round, none repeated; one round cannot show whether the machine is noisy"


def test_best_median_spread_and_ratio_are_printed_for_each_side(capsys):
    """Ratios are those of the same round: the median of 4/1, 4.4/1.1, 4.4/1.2, not 4.4/1.1."""
    done = take_turns(scripted(base=[1.0, 1.1, 1.2], other=[4.0, 4.4, 4.4]), 3, RATE)
    assert done.ratio("other", "base") == pytest.approx(4.0)
    capsys.readouterr()
    done.print("16 MB", base="base", notes={"other": "same ids"})
    blank, head, first, second, verdict = capsys.readouterr().out.splitlines()
    assert (blank, " ".join(head.split())) == ("", "16 MB median MB/s best MB/s spread ratio of bests")
    assert first.split() == ["base", "1.100", "1.200", "20%", "1", "1"]
    assert second.split() == ["other", "4.400", "4.400", "10%", "4", "3.67", "same", "ids"]
    assert verdict == "3 rounds, none repeated"


def test_the_best_time_is_the_shortest():
    done = take_turns(scripted(a=[1.2, 1.0, 1.1]), 3, SECONDS)
    assert (done.best("a"), done.median("a")) == (1.0, 1.1)


def test_what_a_turn_returns_is_kept_beside_the_number_that_is_compared():
    done = take_turns(scripted(a=[("x", 1.0), ("y", 1.1)]), 2, SECONDS, lambda result: result[1])
    assert done.results == {"a": [("x", 1.0), ("y", 1.1)]} and done.values == {"a": [1.0, 1.1]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0123, "0.012"), (1.5, "1.500"), (12.34, "12.34"), (999.9, "999.9"), (15866.4, "15,866"), (0.0, "0.000")],
)
def test_numbers_have_four_digits(value, text):
    assert number(value) == text


def test_the_machine_is_named_with_the_instruction_sets_that_matter(monkeypatch):
    found = device.Processor("Example 9", frozenset({"sse2", "avx2", "avx512f", "avx512_bf16", "amx_bf16"}))
    monkeypatch.setattr(rounds, "processor", lambda: found)
    monkeypatch.setattr(rounds, "cpu_cores", lambda: 2)
    monkeypatch.setattr("os.getloadavg", lambda: (0.25, 1, 1))
    assert machine() == "Example 9 (AVX2, AVX-512, AVX512-BF16, AMX-BF16), 2 cores, load 0.25 at the start"
    monkeypatch.setattr(rounds, "processor", lambda: device.Processor("Old", frozenset()))
    assert machine() == "Old, 2 cores, load 0.25 at the start"


def test_the_machine_is_printed_before_the_first_turn(capsys):
    seen = []
    take_turns({"a": lambda: seen.append(capsys.readouterr().out) or 1.0}, 1, SECONDS)
    assert seen == [machine() + "\n"]


def test_less_than_one_round_is_refused(capsys):
    parser = argparse.ArgumentParser()
    add_rounds(parser, 3)
    assert parser.parse_args([]).rounds == 3
    with pytest.raises(SystemExit):
        parser.parse_args(["--rounds", "0"])
    assert "must be 1 or more, got 0" in capsys.readouterr().err


def scripts():
    """Arguments of `python -m` for every script, those of benchmarks.data once for each of its subjects."""
    modules = [p.stem for p in sorted((ROOT / "benchmarks").glob("*.py")) if "ArgumentParser(" in p.read_text()]
    of_data = [m.removeprefix("data_") for m in modules if m.startswith("data_")]
    return [[m] for m in modules if not m.startswith("data_")] + [["data", name] for name in of_data]


@pytest.mark.parametrize("command", scripts(), ids=" ".join)
def test_every_script_explains_itself(monkeypatch, capsys, command):
    monkeypatch.setattr(sys, "argv", ["", *command[1:], "--help"])
    monkeypatch.delitem(sys.modules, f"benchmarks.{command[0]}", raising=False)  # another test may have imported it
    with pytest.raises(SystemExit) as done:
        runpy.run_module(f"benchmarks.{command[0]}", run_name="__main__", alter_sys=True)
    printed = capsys.readouterr().out
    assert done.value.code == 0 and printed.startswith("usage: ")
    # A table of one side has steps, and one of the sides is a server that another script starts.
    assert command in (["data"], ["step"], ["plain_server"]) or "--rounds" in printed


def test_all_scripts_are_found():
    found = [" ".join(c) for c in scripts()]
    assert {"noop", "startup", "throughput", "tracking", "speedrun", "data"} <= set(found)
    assert {f"data {x}" for x in ("encode", "loader", "filters", "duplicates", "memory")} <= set(found)
