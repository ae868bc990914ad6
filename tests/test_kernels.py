"""The numeric tests hold with the kernels that torch has for other processors, too, as far as this one can run them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
LEVELS = ["DEFAULT", "AVX2", "AVX512"]  # of an x86 processor: one that has a level has those before it
HERE = torch.backends.cpu.get_cpu_capability()
OTHERS = LEVELS[: LEVELS.index(HERE)] if HERE in LEVELS else []  # this process itself tests its own
CHILD = """
import sys, pytest, torch
print("kernels:", torch.backends.cpu.get_cpu_capability())
sys.exit(pytest.main(["-q", "-x", "-m", "numeric and not slow", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("level", OTHERS)
def test_the_numeric_tests_hold_with_the_kernels_of_other_processors(level, tmp_path):
    files = [
        p for p in sorted((ROOT / "tests").rglob("test_*.py")) if "\npytestmark = pytest.mark.numeric" in p.read_text()
    ]
    env = {**os.environ, "ATEN_CPU_CAPABILITY": level.lower(), "OMP_NUM_THREADS": "1"}
    env = {k: v for k, v in env.items() if not k.startswith("PYTEST_")}
    command = [sys.executable, "-c", CHILD, f"--basetemp={tmp_path / 'tests'}", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert f"kernels: {level}\n" in done.stdout
    assert int(re.search(r"(\d+) passed", done.stdout).group(1)) > 50
