"""`foundry doctor` finds faults that are planted, says what to do for each, and nothing is wrong where nothing is."""

import contextlib
import http.server
import json
import shutil
import sqlite3
import sys
import threading
from collections import namedtuple
from pathlib import Path

import pytest

from foundry import MiniLLM
from foundry.cli import main
from foundry.config import Runtime, load_params
from foundry.project.doctor import Finding, examine, machine, place
from foundry.utils import device as devices

CHECKS = [
    *("python", "git", "packages", "device", "bf16", "compile", "forward"),
    *("disk", "locks", "dvc", "mlflow", "prefect", "parameters"),
]
PARAMS = "download: {sources: [{name: one, url: 'file:corpus/x'}]}\n"
LOCK = "schema: '2.0'\nstages:\n  one:\n    cmd: x\n    outs:\n    - {path: out, md5: abc}\n"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project whose check of the compiler, which takes seconds, is that of the tests which plant a fault in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "compile_problem", lambda where: None)
    (tmp_path / "params.yaml").write_text(PARAMS)
    return tmp_path


@pytest.fixture
def server():
    """A server that is healthy at /health and at /api/health, and nowhere else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path in ("/health", "/api/health") else 404)
            self.end_headers()
            self.wfile.write(b"true")

        def log_message(self, *rest):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as served:
        threading.Thread(target=served.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{served.server_port}"
        served.shutdown()


def runtime(text: str = "{}") -> Runtime:
    Path("params.yaml").write_text(f"{PARAMS}runtime: {text}\n")
    return load_params("params.yaml").runtime


def only(findings) -> Finding:
    (found,) = findings
    return found


def test_every_check_reports_once_and_nothing_is_left_behind(root, capsys):
    before = set(root.iterdir())
    main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert [f["check"] for f in found] == CHECKS
    assert {f["check"] for f in found if f["state"] != "ok"} <= {"dvc", "compile", "packages"}  # this is no clone
    assert all(f["advice"] for f in found if f["state"] != "ok")
    assert set(root.iterdir()) == before
    assert next(f for f in found if f["check"] == "forward")["state"] == "ok"


def test_a_finding_that_is_not_ok_has_to_say_what_to_do():
    for state in ("note", "problem"):
        with pytest.raises(ValueError, match="must say what to do"):
            Finding("disk", state, "full")


def test_problems_end_the_command_with_1_and_wrong_parameters_hide_no_other_check(root, capsys, monkeypatch):
    Path("params.yaml").write_text(PARAMS + "modle: {}\n")
    monkeypatch.setattr(machine, "versions", lambda: 1 / 0)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1 and err == "error: 2 of 12 findings will make something fail: python, parameters\n"
    assert "problem  python      the check failed: ZeroDivisionError" in out and "modle: unknown key" in out
    assert "ok       forward" in out
    assert examine("missing.yaml", root)[-1].state == "note"


def test_wrong_versions_and_missing_packages_are_named(root, monkeypatch):
    assert {f.state for f in machine.versions()} == {"ok"}
    monkeypatch.setattr(sys, "version_info", (3, 10, 1))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    python, git = machine.versions()
    assert python.state == git.state == "problem" and "3.11 to 3.13" in python.advice and "DVC" in git.advice
    (root / "constraints.txt").write_text("# pins\ntorch==2.13.0\nnumpy==1.0\nno-such-package==3\n")
    found = only(machine.packages(root))
    assert found.state == "note" and "numpy" in found.seen and "(tested: 1.0)" in found.seen
    assert "torch" not in found.seen and "no-such" not in found.seen
    (root / "constraints.txt").write_text("torch==2.13.0\n")
    assert only(machine.packages(root)).state == "ok"
    monkeypatch.setattr(machine, "find_spec", lambda name: None if name in ("dvc", "pandera") else name)
    missing, _ = machine.packages(root)
    assert missing.state == "note" and "pandera, dvc" in missing.seen and "extras=data" in missing.advice
    (root / "dvc.yaml").touch()
    assert next(machine.packages(root)).state == "problem"


def test_each_feature_is_an_extra_that_repro_installs():
    from distributions import installs, modules_without

    assert set(machine.FEATURES.values()) & set(modules_without("repro")) == set()
    assert all(installs(extra) <= installs("repro") for extra in machine.FEATURES)


def test_a_device_that_is_not_there_and_emulated_arithmetic_are_found(root, monkeypatch):
    import torch

    if not torch.cuda.is_available():
        assert only(machine.device(runtime("{device: cuda}"))).state == "problem"
    cpu = runtime("{device: cpu, precision: bfloat16}")
    monkeypatch.setattr(devices, "native_bfloat16", lambda where: False)
    here, bf16 = machine.device(cpu)
    assert here.state == "ok" and bf16.state == "note" and "runtime.precision: auto" in bf16.advice
    _, bf16 = machine.device(runtime("{device: cpu}"))
    assert bf16.state == "ok" and bf16.seen.endswith("training uses float32")
    monkeypatch.setattr(devices, "native_bfloat16", lambda where: True)
    _, bf16 = machine.device(runtime("{device: cpu}"))
    assert bf16.state == "ok" and bf16.seen.endswith("training uses bfloat16")


def test_a_driver_without_a_build_for_it_is_found(root, monkeypatch):
    import torch

    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    assert "a build for the CPU" in next(machine.device(runtime("{device: cpu}"))).seen


@pytest.mark.parametrize(("wish", "state"), [("auto", "note"), ("always", "problem")])
def test_what_cannot_be_compiled_is_a_note_unless_compilation_is_demanded(root, monkeypatch, wish, state):
    how = runtime(f"{{device: cpu, compile: {wish}}}")
    monkeypatch.setattr(devices, "compiler_problem", lambda: None)
    assert only(machine.compilation(how)).state == "ok"
    monkeypatch.setattr(devices, "compile_problem", lambda where: "fatal error: Python.h")
    found = only(machine.compilation(how))
    assert found.state == state and "Python.h" in found.seen and "python3-dev" in found.advice
    monkeypatch.undo()
    monkeypatch.setenv("CXX", str(root / "no-such-compiler"))
    found = only(machine.compilation(how))
    assert found.state == state and "no-such-compiler" in found.seen and "apt-get install g++" in found.advice
    never = how.model_copy(update={"compile": "never"})
    assert only(machine.compilation(never)).state == "ok"


def test_a_forward_pass_that_is_wrong_is_found(root, monkeypatch):
    import torch

    exact = only(machine.forward_pass(runtime("{device: cpu, precision: float32}")))
    assert exact.state == "ok" and "within 0 of" in exact.seen

    def damaged(self, where):
        with torch.no_grad():
            self.layers[1].ffn.w_down.weight.normal_()
        return self

    monkeypatch.setattr(MiniLLM, "to", damaged)
    assert only(machine.forward_pass(runtime("{device: cpu, precision: float32}"))).state == "problem"


def test_a_full_disk_is_found(root, monkeypatch):
    assert only(place.disk(root)).state == "ok"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(100, 99, place.ENOUGH - 1))
    found = only(place.disk(root))
    assert found.state == "problem" and "foundry gc" in found.advice


def test_locks_without_effect_are_found_and_held_ones_are_named(root, monkeypatch):
    held = root / ".foundry/train/abc/lock"
    with place.exclusive(held):
        found = only(place.locks(root))
    assert found.state == "ok" and ".foundry/train/abc/lock (pid " in found.seen
    assert "held now: none" in only(place.locks(root)).seen
    assert "cannot be taken" in only(place.locks(root / "missing")).seen
    monkeypatch.setattr(place, "exclusive", lambda path: contextlib.nullcontext())
    found = only(place.locks(root))
    assert found.state == "problem" and "two processes" in found.advice


def test_damaged_and_lost_files_of_dvc_are_found(root, monkeypatch):
    assert only(place.dvc(root)).state == "note"
    (root / ".dvc").mkdir()
    asked = []
    monkeypatch.setattr(place, "Cache", lambda at: asked.append(at) or FakeCache(root / "cache"))
    (root / "dvc.yaml").write_text("stages: {one: {cmd: x, outs: [out]}}\n")
    (root / "dvc.lock").write_text(LOCK)
    found = only(place.dvc(root))
    assert found.state == "note" and "1 of 1 recorded outs" in found.seen and "dvc pull out" in found.advice
    (root / "cache").mkdir()
    (root / "cache/abc").touch()
    assert only(place.dvc(root)).state == "ok" and asked
    (root / "dvc.lock").write_text(LOCK[:-20])
    found = only(place.dvc(root))
    assert found.state == "problem" and "foundry check" in found.advice


class FakeCache:
    """In place of asking DVC, which takes a second."""

    def __init__(self, folder):
        self.folder = folder

    def path(self, md5):
        return self.folder / md5


def test_stores_and_servers_are_asked_and_silence_is_a_note(root, server, monkeypatch):
    silent = "http://127.0.0.1:9"
    assert "is false" in only(place.mlflow(runtime("{tracking: false}"))).seen
    assert "does not exist yet" in only(place.mlflow(runtime())).seen
    with contextlib.closing(sqlite3.connect(root / "mine.db")) as db:
        db.execute("CREATE TABLE runs (a)")
    mine = "{tracking_uri: 'sqlite:///mine.db'}"
    assert only(place.mlflow(runtime(mine))).seen.endswith("0 runs")
    (root / "mine.db").write_bytes(b"no database" * 100)
    found = only(place.mlflow(runtime(mine)))
    assert found.state == "note" and "foundry backup" in found.advice
    assert only(place.mlflow(runtime(f"{{tracking_uri: '{server}'}}"))).seen == f"{server}: it answers"
    for address in (silent, f"{server}/elsewhere"):
        found = only(place.mlflow(runtime(f"{{tracking_uri: '{address}'}}")))
        assert found.state == "note" and "foundry sync" in found.advice
    assert only(place.mlflow(runtime("{tracking_uri: 'ftp://x'}"))).state == "problem"

    monkeypatch.setattr(place, "find_spec", lambda name: None)
    assert "extras=ui" in only(place.prefect(root)).seen
    monkeypatch.setattr(place, "find_spec", lambda name: name)
    assert "`make ui` starts it" in only(place.prefect(root)).seen
    monkeypatch.setenv("PREFECT_API_URL", f"{server}/api")
    assert only(place.prefect(root)) == Finding("prefect", "ok", f"{server}/api answers")
    monkeypatch.setenv("PREFECT_API_URL", silent)
    assert only(place.prefect(root)).state == "note"
