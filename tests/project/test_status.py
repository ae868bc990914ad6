"""`foundry status` shows what runs, has stopped and waits: of a real training, and of an empty project."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from foundry.cli import main
from foundry.project.status import last_point, size
from foundry.tracking.spool import Logged
from foundry.utils.files import write_json
from foundry.utils.locks import exclusive

RUNNER = Path(__file__).resolve().parents[1] / "training/runner.py"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


def ask(capsys):
    main(["status", "--json"])
    return json.loads(capsys.readouterr().out)


def test_in_an_empty_project_nothing_runs(root, capsys):
    found = ask(capsys)
    assert found["running"] == found["stopped"] == found["waiting"] == [] and found["ui"] == {}
    assert found["disk"]["free_bytes"] > 0 and found["disk"]["used_bytes"] == {}
    main(["status"])
    out = capsys.readouterr().out
    assert "nothing runs" in out and "`make ui` starts them" in out and "MiB free" in out
    assert list(root.iterdir()) == []  # nothing was written


def test_a_running_and_a_stopped_training_are_shown_with_what_mlflow_does_not_have(root, shards, capsys):
    """MLflow never answers here."""
    command = [
        sys.executable,
        str(RUNNER),
        str(shards),
        str(root / ".foundry/train"),
        str(root / "model"),
        "steps=4000",
        "track=http://127.0.0.1:9",
    ]
    env, saved = {**os.environ, "PYTHONUNBUFFERED": "1"}, ".foundry/train/*/checkpoints/step-*/checkpoint.json"
    p = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
    try:
        for line in p.stdout:
            if line.startswith("step ") and int(line.split()[1]) >= 6 and list(root.glob(saved)):
                break  # a checkpoint is written in the background: it may end some steps after its own
        (row,) = ask(capsys)["running"]
        assert row["what"] == "training" and row["pid"] == p.pid and row["steps"] == 4000
        assert 4 <= row["step"] < 4000 and 0 < row["loss"] < 10 and not row["finished"]
        main(["status"])
        assert f"runs: training {row['run']}, step " in capsys.readouterr().out
        p.send_signal(signal.SIGKILL)
    finally:
        p.kill()
        p.communicate()
    found = ask(capsys)
    assert found["running"] == []
    (stopped,) = found["stopped"]
    assert stopped["run"] == row["run"] and 4 <= stopped["saved_step"] <= stopped["step"]
    (waiting,) = found["waiting"]
    assert waiting["what"] == "metrics" and waiting["points"] >= 6 and "http://127.0.0.1:9" in waiting["why"]
    main(["status"])
    out = capsys.readouterr().out
    assert "`dvc repro` resumes it" in out and "`foundry sync` delivers them" in out


def test_a_flow_a_stage_a_waiting_registration_and_unreachable_pages_are_listed(root, capsys):
    (root / "dvc.yaml").write_text("stages: {clean: {cmd: x, outs: [data/clean]}}")
    entry = {str(root / "data/clean"): {"write": {"pid": os.getpid(), "cmd": "dvc repro"}}}
    write_json(root / ".dvc/tmp/rwlock", entry)
    write_json(root / ".foundry/register/0123456789abcdef/waiting.json", {"tags": {}})
    write_json(root / ".foundry/ui/addresses.json", {"mlflow": "http://127.0.0.1:9"})
    with exclusive(root / ".foundry/runs/building", note="flow run abc"):
        found = ask(capsys)
    assert [(r["what"], r["pid"]) for r in found["running"]] == [("stage", os.getpid()), ("flow", os.getpid())]
    assert found["running"][0]["stage"] == "clean" and found["running"][1]["note"] == "flow run abc"
    assert found["waiting"][0]["what"] == "registration"
    assert found["ui"] == {"mlflow": {"url": "http://127.0.0.1:9", "answers": False}}
    assert [r["what"] for r in ask(capsys)["running"]] == ["stage"]  # the lock is free, although its file still exists
    main(["status"])
    assert "does not answer" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "7", '{"a": 1}', "\x00", '{"train.steps": "many"}', '{"x": {"write": 1}}']
)
def test_damaged_files_of_the_state_stop_nothing(root, text, capsys):
    names = [
        "train/f/identity.json",
        "train/f/run.json",
        "train/f/metrics.jsonl",
        "train/f/uploaded.offset",
        "train/f/lock",
        "runs/building",
    ]
    for name in [*(f".foundry/{n}" for n in names), ".foundry/ui/addresses.json", ".dvc/tmp/rwlock", "dvc.yaml"]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    assert ask(capsys)["running"] == []
    main(["status"])


def test_the_last_point_is_that_of_the_training_and_links_are_counted_once(root):
    lines = [{"t": 1000, "s": 5, "m": {"loss": 2.5}}, {"t": 2000, "s": 900, "m": {"system/cpu": 1.0}}]
    (root / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines) + '{"t": 3, "s": 6, "m": {"lo')
    assert last_point(root / "metrics.jsonl") == Logged(time=1000, step=5, metrics={"loss": 2.5})
    (root / "a").mkdir()
    (root / "a/x").write_bytes(b"12345")
    os.link(root / "a/x", root / "a/y")
    (root / "a/z").symlink_to("/usr/bin")
    assert size(root / "a") < 5 + 100 and size(root / "a") >= 5
