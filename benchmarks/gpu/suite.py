"""The part `tests`: the tests marked `cuda`, each outcome in the report as soon as it is known."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.child import ROOT, TOLD
from benchmarks.gpu.record import Outcome

FOLDER = ROOT / "tests" / "cuda"
SEEN = "FOUNDRY_GPU_OUTCOMES"  # names the file of `outcomes`


def run(bench: Bench) -> None:
    run_tests(bench, FOLDER)


def run_tests(bench: Bench, folder: Path) -> None:
    """Runs the tests of a folder, each file in a process of its own: after an error of CUDA a process is of no use."""
    files = sorted(folder.glob("test_*.py"))
    if not files:
        bench.problem(f"there are no tests in {folder}")
    for file in files:
        if bench.clock.left <= 0:
            bench.problem(f"the time was over before {file.name}")
        else:
            _run_file(bench, file)


def _run_file(bench: Bench, file: Path) -> None:
    """Runs the tests of a file.

    A test that ends the process, or in which the part's time ends, is known by its beginning without an end.
    """
    seen, log = bench.folder / f"{file.stem}.jsonl", bench.folder / f"{file.stem}.log"
    options = ["-m", "cuda", "-q", "--tb=short", "-p", "benchmarks.gpu.outcomes", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", str(file), *options]
    with log.open("w") as out:
        env = {**os.environ, SEEN: str(seen)}
        process = subprocess.Popen(command, stdout=out, stderr=out, cwd=ROOT, env=env, start_new_session=True)
    lines: list[dict] = []
    try:
        while process.poll() is None and bench.clock.left > 0:
            time.sleep(0.2)
            lines = _put_new(bench, seen, lines)
        late = process.poll() is None
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with the processes that its tests started
            process.wait()
    lines = _put_new(bench, seen, lines)
    for test in (line["test"] for line in lines if line["result"] == "begun"):
        if test not in bench.outcomes:
            result = "late" if late else "crashed"
            bench.put(Outcome(test=test, result=result, seconds=0.0, message=_tail(log)))
    if late:
        bench.problem(f"the time was over in {file.name}")
    elif process.returncode > 1 or not lines:  # 0 and 1: all passed, or the outcomes say which failed
        bench.problem(f"pytest ended with exit code {process.returncode} in {file.name}: {_tail(log)}")
    elif process.returncode < 0:
        bench.problem(f"{file.name} was ended by {signal.Signals(-process.returncode).name}: {_tail(log)}")


def _put_new(bench: Bench, seen: Path, known: list[dict]) -> list[dict]:
    """Adds what was written since to the report; returns all complete lines."""
    text = seen.read_text() if seen.exists() else ""
    lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    bench.put(*(Outcome(**line) for line in lines[len(known) :] if line["result"] != "begun"))
    return lines


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-TOLD:].strip()
