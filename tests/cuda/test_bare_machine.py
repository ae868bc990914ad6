"""A machine with a GPU often has PyTorch and no package index: what `conftest.py` lists is enough for these tests."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LISTED = "torch numpy pyarrow pydantic pyyaml safetensors sentencepiece psutil tqdm pytest"
CHILD = """
import importlib.util, re, sys
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions

def plain(name):
    return name.lower().replace("_", "-")

allowed, left = {"foundry-lm"}, sys.argv[1].split()
while left:
    name = left.pop()
    if name not in allowed:
        allowed.add(name)
        try:
            needs = distribution(name).requires or []
        except PackageNotFoundError:  # for another platform
            continue
        left += [plain(re.match(r"[\\w.-]+", need)[0]) for need in needs if "extra ==" not in need]
homes = packages_distributions()

class Listed(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owners = {plain(owner) for owner in homes.get(name.partition(".")[0], ())}
        return super().find_spec(name, path, target) if not owners or owners & allowed else None

sys.meta_path[sys.meta_path.index(PathFinder)] = Listed
assert all(importlib.util.find_spec(name) is None for name in ("pandas", "transformers", "mlflow", "prefect"))
spec = importlib.util.spec_from_file_location("runner", "tests/training/runner.py")
spec.loader.exec_module(importlib.util.module_from_spec(spec))
import pytest
which = ["-m", "not cuda", "-k", "copied_ahead or read_back"]
sys.exit(pytest.main(["tests/cuda", "-q", "-p", "no:cacheprovider", *which]))
"""


def test_these_tests_need_nothing_that_is_not_listed():
    """Everything else is as if it were not there: modules are imported, data is made, models train and are exported."""
    env = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run([sys.executable, "-c", CHILD, LISTED], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "2 passed" in done.stdout, done.stdout + done.stderr
