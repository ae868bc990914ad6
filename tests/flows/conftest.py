"""A toy pipeline in a folder with a space and non-ASCII letters, and one Prefect server for the session."""

import os
import subprocess
import sys

import pytest

STAGE = """
import os, signal, sys, time
from pathlib import Path
name = sys.argv[1]
sys.path.insert(0, {repo!r})
from foundry.utils.process import die_with_parent
die_with_parent()
Path(name + ".pid").write_text(str(os.getpid()))
print("hello from", name, os.environ.get("FOUNDRY_FLOW_RUN_ID", "-"), flush=True)
told = Path("todo-" + name)
todo = told.read_text().split() if told.exists() else []
def save(signum, frame):
    Path(name + ".saved").write_text(str(signum)); sys.exit(128 + signum)
signal.signal(signal.SIGTERM, save); signal.signal(signal.SIGINT, save)
if "sleep" in todo: time.sleep(60)
if "fail" in todo: print("the reason of the failure"); sys.exit(3)
Path("out-" + name).write_text(Path("in-" + name).read_text())
"""
DVC = """
stages:
  one:
    desc: first
    cmd: exec python stage.py one
    deps: [in-one]
    outs: [out-one]
    meta: {prefect: {retries: 0, timeout_s: 600}}
  two:
    desc: second
    cmd: exec python stage.py two
    deps: [in-two, out-one]
    outs: [out-two]
    meta: {prefect: {retries: 1, retry_delay_s: 0, timeout_s: 600}}
  three:
    desc: third
    cmd: exec python stage.py three
    deps: [in-three, out-two]
    outs: [out-three]
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """A repository of three stages; a file `todo-NAME` makes a stage sleep or fail."""
    from pathlib import Path

    root = tmp_path / "Größe 模型"
    root.mkdir()
    (root / "stage.py").write_text(STAGE.format(repo=str(Path(__file__).resolve().parents[2])))
    (root / "dvc.yaml").write_text(DVC)
    for name in ("one", "two", "three"):
        (root / f"in-{name}").write_text(name)
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    subprocess.run(
        [sys.executable, "-m", "dvc", "init", "-q"], cwd=root, check=True, env={**os.environ, "DVC_NO_ANALYTICS": "1"}
    )
    monkeypatch.setenv("FOUNDRY_ROOT", str(root))
    return root


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """Prefect's own test server with a database of its own; it costs seconds, so there is one."""
    os.environ["PREFECT_HOME"] = str(tmp_path_factory.mktemp("prefect"))
    from prefect.testing.utilities import prefect_test_harness

    import flows.pretrain  # noqa: F401 - sets the environment before prefect reads it

    with prefect_test_harness(server_startup_timeout=180):
        yield
