"""Units: the same result for every number of workers, size of units and executor; what a killed run finished is
kept."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from cleaning import MINE, OUT, REPORTS, digests, run, texts
from kills import every_kill

import foundry.data.clean.corpus as module
from foundry.config import DataError

ROOT = Path(__file__).parents[3]
RULES = {"max_line_documents": 3, "near_dup_threshold": 0.6, "fix_mojibake": True}


@pytest.fixture
def mixed(corpus, story):
    """The corpus, and a third file with lines that many documents share and records that cannot be read."""
    with open(corpus / "corpus/c.jsonl", "w") as f:
        for i in range(60):
            text = f"{story(1000 + i, 40)}\nRead our cookie notice before you go on.\nmail me{i}@example.org"
            f.write(json.dumps({"text": text}) + "\n" + ('{"text": 7}\n' if i % 30 == 7 else ""))
    return corpus


@pytest.mark.parametrize("rules", [{}, RULES], ids=["default", "repeats"])
def test_every_division_of_the_work_gives_the_same_bytes(mixed, rules):
    run(MINE, **rules)
    expected = digests()
    for runtime in (
        {"workers": 3},
        {"unit_bytes": 1024},
        {"workers": 2, "unit_bytes": 4096},
        {"memory_bytes": 1 << 20},
    ):
        run(MINE, runtime=runtime, **rules)
        assert digests() == expected, runtime


def test_ray_gives_the_same_bytes(mixed, monkeypatch):
    run(MINE)
    expected = digests()
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for Ray's workers
    run(MINE, runtime={"executor": "ray", "workers": 2, "unit_bytes": 8192})
    assert digests() == expected


def test_sorting_in_passes_finds_the_same(mixed, monkeypatch):
    from foundry.data.clean import dedup

    run(MINE, **RULES)
    expected = digests()
    monkeypatch.setattr(dedup, "_SORT_BYTES", 40_000)  # 300 documents need a dozen passes
    run(MINE, runtime={"memory_bytes": 1 << 20}, **RULES)
    assert digests() == expected


def test_killed_run_keeps_its_finished_units(mixed):
    """SIGKILL at several moments; the last run does only what is left, and the result is the same."""
    run(MINE)
    expected = digests()
    params = {"download": {"sources": [MINE]}, "runtime": {"workers": 1, "unit_bytes": 1024}}
    (mixed / "params.yaml").write_text(yaml.safe_dump(params))
    work = mixed / ".foundry/clean"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "FOUNDRY_PROGRESS": "0"}
    for wanted in (3, 20, 40):
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.clean"], cwd=mixed, env=env, stdout=subprocess.DEVNULL
        )
        while len(list(work.glob("*/*.json"))) < wanted and process.poll() is None:
            time.sleep(0.005)
        assert process.poll() is None, "the stage ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run([sys.executable, "-m", "stages.clean"], cwd=mixed, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "finished by an earlier run" in line]
    assert int(line.split()[1]) >= 40
    assert digests() == expected
    assert not list(work.glob("*/"))


def test_a_kill_at_any_system_call_that_changes_the_disk_costs_nothing_but_time(story, tmp_path, monkeypatch):
    """Of the units, of `data/clean` and of the reports; the same command then gives the same bytes (`foundry gc`
    removes the rest)."""
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    Path("corpus/a.jsonl").write_text("".join(json.dumps({"text": story(i, 40)}) + "\n" for i in range(30)))
    runtime = {"unit_bytes": 4096}

    def check(place):
        run(MINE, runtime=runtime)
        assert {name: d for name, d in digests().items() if not Path(name).name.startswith(".")} == expected, place
        assert not list(Path(".foundry/clean").glob("*/")), place

    def prepare():
        for folder in (OUT, REPORTS):
            shutil.rmtree(folder)

    run(MINE, runtime=runtime)
    expected = digests()
    every_kill(lambda: run(MINE, runtime=runtime), check, prepare, least=60)


def test_a_finished_unit_without_its_rows_is_an_error_not_a_smaller_corpus(mixed, monkeypatch):
    def stopped(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(module.Cleaning, "find_duplicates", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(MINE, runtime={"unit_bytes": 1024})
    next(Path(".foundry/clean").glob("*/00003.arrow")).unlink()
    with pytest.raises(
        DataError, match=r"finished units in .* contain \d+ documents, but \d+ passed.* Remove the folder"
    ):
        run(MINE, runtime={"unit_bytes": 1024})


def test_units_of_other_rules_are_not_used(mixed):
    run(MINE, runtime={"unit_bytes": 2048})
    first = texts()
    run(MINE, runtime={"unit_bytes": 2048}, near_dedup="ignore")
    assert len(texts()) == len(first) + 20


def test_finished_units_are_those_of_the_same_code_and_libraries(monkeypatch):
    """All code that `dvc.yaml` names for the stage, and the versions of the libraries that read and change texts."""
    deps = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["clean"]["deps"]
    code = {
        d for d in deps if d.startswith("foundry/") and d.endswith(".py")
    }  # HTML templates only show what was counted
    ours = {d.removeprefix("foundry/") for d in code - {"foundry/__init__.py"}}
    before = module._code()
    assert ours and ours <= before.keys()
    monkeypatch.setattr(module, "version", lambda name: "another")
    after = module._code()
    assert {k for k in before if before[k] != after[k]} == set(module.LIBRARIES)
