"""`make gpu` apart from CUDA itself: tiny shapes on the CPU, failing sides, lost time, its report, its pages."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu import suite
from benchmarks.gpu.__main__ import PARTS, begin_report, file_name, run_part
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.child import Child, Clock, SideFailed
from benchmarks.gpu.page import LANGUAGES, all_reports, table, with_results
from benchmarks.gpu.record import Card, Comparison, GpuReport, Number, Outcome, Part, Side, read_report
from benchmarks.gpu.shapes import PROFILES, shape
from benchmarks.gpu.train import memory_share, step_rows
from benchmarks.gpu.turns import take_turns
from foundry.config import FoundryError
from foundry.config.profiles import profile_config

ROOT = Path(__file__).resolve().parents[2]
CARD = Card(
    name="NVIDIA H100 80GB HBM3",
    device="cuda",
    memory_gib=79.1,
    capability="9.0",
    driver="570",
    cuda="12.8",
    torch="2.10",
    python="3.12",
    cores=16,
    peak_tflops=989.0,
    tiny=False,
)
OTHERS = (
    "mlflow",
    "prefect",
    "dvc",
    "pandas",
    "ruamel",
    "transformers",
    "datasets",
    "polars",
    "matplotlib",
    "requests",
)


def command(out, *options, env=None):
    """Runs `python -m benchmarks.gpu` on the CPU with tiny shapes: (exit code, report, what it printed)."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--out", str(out), *options]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True)
    reports = list(Path(out).glob("*.json"))
    assert len(reports) == 1, done.stdout + done.stderr
    return done.returncode, read_report(reports[0]), done.stdout + done.stderr


def without(folder, *modules):
    """An environment in which these modules cannot be imported."""
    folder.mkdir()
    for name in modules:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('No module named {name}', name={name!r})\n")
    return {"PYTHONPATH": str(folder)}


@pytest.mark.slow
def test_every_measurement_goes_through_on_the_cpu(tmp_path):
    code, report, printed = command(tmp_path, "--only", "train", "decode", "evaluate", "--commit", "abc")
    assert code == 0, printed
    assert report.card.tiny and report.card.device == "cpu"
    comparisons = {c.name: c for part in report.parts.values() for c in part.comparisons}
    expected = {
        "bfloat16 product of 512 x 512": {"product"},
        "train gpu-124m": {"foundry", "nanogpt", "transformers"},
        "decode gpu-124m, 1 row": {"foundry", "foundry-eager", "transformers", "transformers-static"},
        "decode gpu-124m, 16 rows": {"foundry", "transformers"},
        "score documents, gpu-124m": {"cpu float32", "cpu bfloat16", "reference: CPU float32"},
    }
    assert {name: {s.name for s in c.sides} for name, c in comparisons.items()} == expected
    for comparison in comparisons.values():
        for side in comparison.sides:
            assert side.problem is None and side.median > 0 and len(side.turns) >= 2, (comparison.name, side)
    numbers = {n.name: n.value for part in report.parts.values() for n in part.numbers}
    assert 0 < numbers["gpu-124m: share of the peak (MFU)"] < 1
    assert 0 < numbers["gpu-124m: Muon's share of a step"] < 1
    assert 0 < numbers["gpu-124m: loader's and logging's share of a step"] < 1
    assert numbers["decode gpu-124m: greedy tokens equal to the eager way in float32"] == 1.0
    assert numbers["gpu-124m: speed against the best peer"] > 0
    assert numbers["decode gpu-124m, 1 row: against generate"] > 0
    assert numbers["score: cpu float32, difference from the CPU"] == 0.0
    assert 0 < numbers["score: cpu bfloat16, largest difference of a document"] < 0.1
    for part in report.parts.values():
        assert part.complete and not part.problems and part.commit == "abc"
    assert "| train gpu-124m, tokens/s | foundry |" in printed


@pytest.mark.slow
def test_it_needs_no_other_packages_and_says_which_side_is_missing(tmp_path):
    env = without(tmp_path / "blocked", *OTHERS)
    code, report, printed = command(tmp_path / "out", "--only", "train", "decode", "evaluate", env=env)
    assert code == 0, printed
    missing = [
        (c.name, s.name, s.problem) for p in report.parts.values() for c in p.comparisons for s in c.sides if s.problem
    ]
    assert {name for name, _, _ in missing} == {"train gpu-124m", "decode gpu-124m, 1 row", "decode gpu-124m, 16 rows"}
    for _, side, problem in missing:
        assert side.startswith("transformers") and problem.startswith("transformers is not installed")
    assert "transformers is not installed" in printed


def test_without_a_gpu_it_says_so_and_writes_no_report(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "no GPU can be used here" in done.stderr
    assert not list(tmp_path.iterdir())


# turns


def clock(seconds=60.0):
    return Clock(seconds)


def values(*numbers):
    left = list(numbers)
    return lambda: left.pop(0)


def test_sides_take_turns_in_changing_order():
    order = []
    sides = {name: (lambda name=name: order.append(name) or 1.0) for name in "abc"}
    assert take_turns(sides, 3, clock()).values == {name: [1.0] * 3 for name in "abc"}
    assert order == [*"abc", *"cba", *"abc"]


def test_a_side_that_fails_has_no_further_turn_and_the_others_go_on():
    def failing():
        calls.append(1)
        raise SideFailed("the card fell off the bus")

    calls = []
    turns = take_turns({"good": lambda: 2.0, "bad": failing}, 3, clock())
    assert turns.values == {"good": [2.0] * 3, "bad": []} and len(calls) == 1
    assert turns.problems == {"bad": "the card fell off the bus"}
    assert take_turns({"bad": failing}, 3, clock()).values == {"bad": []}


def test_a_noisy_round_is_repeated_and_not_without_end():
    once = take_turns({"a": values(10, 10, 5, 10), "b": values(1, 1, 1, 1.1)}, 3, clock())
    assert once.values == {"a": [10, 10, 10], "b": [1, 1, 1.1]} and once.repeated == 1
    wild = take_turns({"a": values(*[2**i for i in range(20)])}, 3, clock())
    assert wild.repeated == 3 and len(wild.values["a"]) == 3


def test_no_round_begins_for_which_there_is_no_time_but_the_first():
    def slow():
        time.sleep(0.2)
        return 1.0

    seen = []
    turns = take_turns({"a": slow}, 50, clock(0.5), lambda turns: seen.append(len(turns.values["a"])))
    assert seen == [1, 2] and turns.values["a"] == [1.0, 1.0]
    assert take_turns({"a": slow}, 5, clock(0.0)).values["a"] == [1.0]


# the processes of the sides


@pytest.fixture
def child(tmp_path):
    made = []

    def make(side="device:Device", **options):
        made.append(Child(side, options or {"device": "cpu"}, tmp_path))
        return made[-1]

    yield make
    for one in made:
        one.close()


def test_a_side_answers_and_its_errors_do_not_end_it(child):
    side = child()
    assert side.ask("card", 60, tiny=True)["device"] == "cpu"
    with pytest.raises(SideFailed, match="AttributeError"):
        side.ask("nothing", 60)
    assert side.ask("gemm", 60, n=32) > 0


def test_a_side_that_crashes_or_is_too_late_is_told_with_the_end_of_its_log(child):
    side = child()
    side.ask("card", 60, tiny=True)
    side._process.send_signal(11)
    with pytest.raises(SideFailed, match="ended by SIGSEGV"):
        side.ask("card", 60, tiny=True)
    late = child()
    with pytest.raises(SideFailed, match="no answer within 0 s"):
        late.ask("card", 0.1, tiny=True)
    assert late._process.wait(10) == -9


def test_a_side_whose_package_is_missing_says_which(child, tmp_path, monkeypatch):
    for key, value in without(tmp_path / "blocked", "transformers").items():
        monkeypatch.setenv(key, value)
    side = child("decode:Generate", profile="gpu-124m", device="cpu", tiny=True, static=False)
    with pytest.raises(SideFailed, match=r"^transformers is not installed"):
        side.ask("prepare", 60)


# what a part derives


@pytest.mark.parametrize("profile", ["laptop", *PROFILES])
def test_the_profiles_are_those_of_the_project_also_without_its_reader_of_yaml(profile):
    assert shape(profile, tiny=False) == profile_config(profile)


def test_a_step_is_cut_where_it_takes_long_but_never_below_a_micro_batch():
    probes = [{"seconds": 1.0, "micro_rows": 8}, {"seconds": 0.5, "micro_rows": 16}]
    assert step_rows(512, probes) == 64  # 8 s at an eighth of a second per sequence
    assert step_rows(32, probes) == 32
    assert step_rows(512, [{"seconds": 1e3, "micro_rows": 8}, {"seconds": 1.0, "micro_rows": 64}]) == 64
    assert step_rows(512, []) == 512


def test_a_side_may_use_what_the_others_leave_while_they_wait():
    small, large = (memory_share(79.1, n, 3) for n in (124_000_000, 970_000_000))
    assert 0.8 < small < 0.95 and 0.55 < large < 0.7
    assert memory_share(None, 10, 3) == 1.0 and memory_share(8.0, 970_000_000, 3) == 0.3


# the report


def test_a_part_that_crashes_is_in_the_report_with_what_it_found_before(tmp_path, monkeypatch):
    def crashing(bench):
        bench.put(Number(name="before", value=1.0, unit="", how="counted"))
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    def good(bench):
        bench.put(Comparison(name="good", unit="x", sides=[Side.of("a", [1.0, 3.0])]))

    monkeypatch.setitem(PARTS, "train", crashing)
    monkeypatch.setitem(PARTS, "decode", good)
    path, report = tmp_path / "h100.json", GpuReport(card=CARD)
    for name in ("train", "decode"):
        run_part(name, report, path, tmp_path, 1.0, None)
    read = read_report(path)
    assert not read.parts["train"].complete and "illegal memory access" in read.parts["train"].problems[0]
    assert [n.name for n in read.parts["train"].numbers] == ["before"]
    assert read.parts["decode"].complete and read.parts["decode"].comparisons[0].sides[0].median == 2.0


def test_a_failed_test_a_problem_and_an_early_end_are_not_good_and_a_missed_target_is():
    part = example().parts["train"]
    assert not part.good  # a test failed
    passed = part.model_copy(update={"outcomes": [Outcome(test="a", result="skipped", seconds=0.0)]})
    assert passed.good and any(n.met is False for n in passed.numbers)
    for change in ({"problems": ["late"]}, {"complete": False}):
        assert not passed.model_copy(update=change).good


def test_every_finding_is_on_the_disk_at_once(tmp_path, monkeypatch):
    def finding(bench):
        bench.put(Outcome(test="t", result="passed", seconds=0.1))
        assert read_report(path).parts["tests"].outcomes[0].test == "t"
        assert not read_report(path).parts["tests"].complete

    monkeypatch.setitem(PARTS, "tests", finding)
    path = tmp_path / "h100.json"
    run_part("tests", GpuReport(card=CARD), path, tmp_path, 1.0, None)
    assert read_report(path).parts["tests"].complete


def test_a_run_of_one_part_keeps_the_others_of_the_same_card_and_versions(tmp_path, monkeypatch):
    monkeypatch.setitem(PARTS, "tests", lambda bench: None)
    path = tmp_path / "h100.json"
    run_part("tests", begin_report(path, CARD), path, tmp_path, 1.0, None)
    assert set(begin_report(path, CARD).parts) == {"tests"}
    assert not begin_report(path, CARD.model_copy(update={"torch": "2.14"})).parts


def test_the_report_refuses_what_its_schema_does_not_have(tmp_path):
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"card": CARD.model_dump(), "parts": {}, "speed": 3}))
    with pytest.raises(FoundryError, match="does not follow its schema"):
        read_report(path)


def test_a_card_names_its_file():
    assert file_name(CARD) == "h100-80gb-hbm3"


# the tests of the part `tests`

TESTS = """
import pytest

@pytest.mark.cuda
def test_good(): pass

@pytest.mark.cuda
def test_bad(): assert 1 == 2, "one is not two"

@pytest.mark.cuda
def test_left_out(): pytest.skip("no CUDA device")

def test_not_marked(): raise AssertionError
"""


@pytest.fixture
def bench(tmp_path):
    (tmp_path / "work").mkdir()
    return Bench(CARD, tmp_path / "work", clock(), lambda bench: None)


def outcomes(bench):
    return {o.test.partition("::")[2]: o for o in bench.outcomes.values()}


def test_each_test_marked_cuda_has_its_outcome(bench, tmp_path):
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "test_some.py").write_text(TESTS)
    (folder / "test_then.py").write_text("import pytest\n@pytest.mark.cuda\ndef test_after(): pass\n")
    suite.run_tests(bench, folder)
    found = outcomes(bench)
    assert {k: o.result for k, o in found.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_left_out": "skipped",
        "test_after": "passed",
    }
    assert "one is not two" in found["test_bad"].message and "no CUDA device" in found["test_left_out"].message
    assert not bench.problems


def test_a_test_that_ends_its_process_is_named_and_the_next_file_runs(bench, tmp_path):
    folder = tmp_path / "cuda"
    folder.mkdir()
    crash = "import os, pytest\n@pytest.mark.cuda\ndef test_crash(): os.kill(os.getpid(), 11)\n"
    (folder / "test_a.py").write_text(crash)
    (folder / "test_b.py").write_text("import pytest\n@pytest.mark.cuda\ndef test_after(): pass\n")
    suite.run_tests(bench, folder)
    assert {k: o.result for k, o in outcomes(bench).items()} == {"test_crash": "crashed", "test_after": "passed"}
    assert len(bench.problems) == 1 and "SIGSEGV" in bench.problems[0]


class UntilThere:
    """A clock whose time is over as soon as a file exists."""

    def __init__(self, path):
        self.path, self.spent = path, 0.0

    @property
    def left(self):
        return 0.0 if self.path.exists() else 60.0


def test_a_test_for_which_the_time_is_over_is_named_and_ended(bench, tmp_path):
    folder, begun = tmp_path / "cuda", tmp_path / "begun"
    folder.mkdir()
    (folder / "test_a.py").write_text(
        "import os, time, pathlib, pytest\n@pytest.mark.cuda\ndef test_long():\n"
        f"    pathlib.Path({str(begun)!r}).write_text(str(os.getpid()))\n    time.sleep(300)\n"
    )
    (folder / "test_b.py").write_text("import pytest\n@pytest.mark.cuda\ndef test_after(): pass\n")
    bench.clock = UntilThere(begun)
    suite.run_tests(bench, folder)
    assert {k: o.result for k, o in outcomes(bench).items()} == {"test_long": "late"}
    assert [p for p in bench.problems if "test_b.py" in p]
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_a_folder_without_tests_is_a_problem(bench, tmp_path):
    suite.run_tests(bench, tmp_path / "nowhere")
    assert "there are no tests" in bench.problems[0]


# the pages


def example():
    sides = [
        Side.of("foundry", [100.0, 110.0, 120.0], facts={"micro_rows": 16, "flops_per_token": 1}),
        Side.of("transformers", [], problem="transformers is not installed: No module | named"),
    ]
    part = Part(
        date="2026-11-27T00:00:00+00:00",
        commit="0123456789abcdef",
        seconds=400.0,
        complete=True,
        comparisons=[Comparison(name="train gpu-124m", unit="tokens/s", sides=sides)],
        numbers=[
            Number(name="MFU", value=0.47, unit="share", how="", required=0.5, moonshot=0.6, where="H100"),
            Number(name="Muon", value=0.0214, unit="share", how="", required=0.03, at_most=True),
        ],
        outcomes=[Outcome(test="a", result="passed", seconds=1.0), Outcome(test="b", result="failed", seconds=1.0)],
    )
    return GpuReport(card=CARD, parts={"train": part})


def test_the_table_has_targets_beside_the_figures():
    text = "\n".join(table([example()], "en"))
    assert "| MFU | 47.0% | 50.0% (H100) | 60.0% (H100) | no |" in text
    assert "| Muon | 2.14% | at most 3.00% |  | yes |" in text
    assert "| train gpu-124m, tokens/s | foundry | 110 | 120 | 20.0% | micro_rows 16 |" in text
    assert "| train gpu-124m | transformers |  |  |  | transformers is not installed: No module \\| named |" in text
    assert "1 passed, 1 failed" in text and "commit 0123456789" in text


def test_results_take_their_place_in_a_page_again_and_again():
    for language in LANGUAGES:
        page = (ROOT / "docs" / language / "gpu.md").read_text(encoding="utf-8")
        once = with_results(page, [example()], language)
        assert once != page and "H100" in once
        assert with_results(once, all_reports(), language) == page, "run python -m benchmarks.gpu.page"
    with pytest.raises(ValueError, match="no place for results"):
        with_results("# GPU\n", [], "en")
