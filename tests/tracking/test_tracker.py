"""Metrics reach MLflow exactly once, whatever happens to MLflow or to the trainer, and never hold the trainer up."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from foundry.config import Runtime, TrackingError
from foundry.tracking import DatasetRef, Tracker, sync, tracking_uri
from foundry.tracking.settings import connect
from foundry.tracking.spool import Spool


def tracker(folder, uri, fingerprint="f1", **kw):
    return Tracker(
        folder, uri=uri, experiment="e", run_name="r", fingerprint=fingerprint, params={"train.lr": "0.1"}, tags={"foundry.stage": "train"},
        datasets=[DatasetRef("data/shards", "d" * 36, "data/shards")], **kw,
    )  # fmt: skip


def history(uri, fingerprint, key="loss"):
    client = connect(uri)
    (run,) = client.search_runs(
        [client.get_experiment_by_name("e").experiment_id], f"tags.`foundry.fingerprint` = '{fingerprint}'"
    )
    return run, sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_a_run_has_its_points_parameters_tags_and_data_sets(root, uri):
    with tracker(root / ".foundry/train/whole", uri, "whole") as t:
        for step in range(5):
            t.log(step, {"loss": 1.0 / (step + 1)})
    run, points = history(uri, "whole")
    assert points == [(s, 1.0 / (s + 1)) for s in range(5)]
    assert (
        run.info.status == "FINISHED"
        and run.data.params == {"train.lr": "0.1"}
        and run.data.tags["foundry.stage"] == "train"
    )
    assert run.inputs.dataset_inputs[0].dataset.digest == "d" * 36


def test_starting_again_continues_the_same_run(root, uri):
    folder = root / ".foundry/train/again"
    for part in ((1, 2), (3,)):
        with tracker(folder, uri, "again") as t:
            for step in part:
                t.log(step, {"loss": float(step)})
    run, points = history(uri, "again")
    assert points == [(1, 1.0), (2, 2.0), (3, 3.0)] and run.info.status == "FINISHED"


@pytest.mark.parametrize(
    ("error", "status"), [(SystemExit(143), "KILLED"), (ValueError("x"), "FAILED"), (KeyboardInterrupt(), "KILLED")]
)
def test_the_end_of_the_block_is_the_status_of_the_run(root, uri, error, status):
    name = f"end-{type(error).__name__}"
    with pytest.raises(type(error)), tracker(root / f".foundry/train/{name}", uri, name) as t:
        t.log(1, {"loss": 1.0})
        raise error
    assert history(uri, name)[0].info.status == status


def test_an_unreachable_server_loses_nothing_and_the_rest_is_delivered_later(root, uri, tmp_path, caplog):
    from foundry.utils.log import get_logger

    get_logger().propagate = True
    monkey = tmp_path / "project"
    folder = monkey / ".foundry" / "train" / "away"
    with tracker(folder, f"http://127.0.0.1:{free_port()}", "away") as t:
        for step in range(100):
            t.log(step, {"loss": float(step), "lr": 0.5})
    assert "foundry sync" in caplog.text and str(folder / "metrics.jsonl") in caplog.text
    with pytest.raises(TrackingError, match="nothing is lost"):
        sync(monkey / ".foundry")
    assert sync(monkey / ".foundry", uri) == 200
    run, points = history(uri, "away")
    assert (
        points == [(s, float(s)) for s in range(100)]
        and run.info.status == "FINISHED"
        and run.data.params == {"train.lr": "0.1"}
    )
    assert sync(monkey / ".foundry", uri) == 0 and history(uri, "away")[1] == points


def test_logging_does_not_wait_for_a_server_that_never_answers(root):
    with socket.socket() as black_hole:
        black_hole.bind(("127.0.0.1", 0))
        black_hole.listen()
        black_hole.settimeout(120)
        t = tracker(root / ".foundry/hole", f"http://127.0.0.1:{black_hole.getsockname()[1]}", "hole")
        t.__enter__()
        connection, _ = black_hole.accept()  # the uploader has asked and will get no answer
        for step in range(200):
            t.log(step, {"loss": 1.0})
        assert t._thread.is_alive() and not t._delivery.run_id  # it still waits; logging did not
        t._stop.set()
        connection.close()
    assert len(Spool(root / ".foundry/hole").pending(10**6)[0]) == 200


def test_a_killed_trainer_loses_no_point_and_its_run_is_closed_as_killed(root, uri):
    folder = root / ".foundry/train/dead"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom foundry.tracking import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), uri=sys.argv[2], experiment='e', run_name='r', fingerprint='dead')\nt.__enter__()\n"
        "for s in range(10**6):\n    t.log(s, {'loss': float(s)})\n    print(s, flush=True)\n    time.sleep(0.001)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(folder), uri], stdout=subprocess.PIPE, text=True)
    last = 0
    for line in child.stdout:
        last = int(line)
        if last >= 300:
            break
    child.kill()
    child.communicate()
    with open(folder / "metrics.jsonl", "ab") as f:
        f.write(b'{"t": 1, "s": 999, "m": {"lo')  # as a kill in the middle of a write leaves it
    sync(root / ".foundry")
    run, points = history(uri, "dead")
    assert run.info.status == "KILLED" and [p for p in points if p[0] <= last] == [
        (s, float(s)) for s in range(last + 1)
    ]
    assert 999 not in [s for s, _ in points]


def test_a_cut_line_does_not_swallow_the_next_one(tmp_path):
    spool = Spool(tmp_path)
    spool.log(1, {"a": 1.0})
    spool.close()
    with open(spool.path, "ab") as f:
        f.write(b'{"t": 5, "s"')
    again = Spool(tmp_path)
    again.log(2, {"a": 2.0})
    assert [(r[0], r[1], r[3]) for r in again.pending()[0]] == [("a", 1.0, 1), ("a", 2.0, 2)]


def test_a_disabled_tracker_writes_nothing(tmp_path):
    with tracker(tmp_path / "x", "http://127.0.0.1:9", enabled=False) as t:
        t.log(1, {"loss": 1.0})
    assert not (tmp_path / "x").exists()


def test_the_address_is_the_parameter_then_the_environment_then_the_projects_own(root, monkeypatch):
    assert tracking_uri(Runtime()) == f"sqlite:///{root}/.foundry/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert tracking_uri(Runtime()) == "http://127.0.0.1:1"
    assert tracking_uri(Runtime(tracking_uri="http://127.0.0.1:2")) == "http://127.0.0.1:2"


def test_importing_the_room_imports_no_mlflow():
    subprocess.run(
        [sys.executable, "-c", "import sys, foundry.tracking; assert 'mlflow' not in sys.modules"], check=True
    )


def serve(root, port):
    env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{root}/server.db", "--artifacts-destination", str(root / "served"),
    ]  # fmt: skip
    p = subprocess.Popen(command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return p
        except OSError:
            time.sleep(0.2)
    os.killpg(p.pid, signal.SIGKILL)
    raise AssertionError("the server did not start")


@pytest.mark.slow
def test_an_outage_in_the_middle_of_training_loses_no_point(root, monkeypatch):
    """A real server, killed while metrics flow and started again."""
    monkeypatch.setattr("foundry.tracking.run.LONGEST_PAUSE", 2.0)
    port = free_port()
    server = serve(root, port)
    try:
        with tracker(root / ".foundry/train/outage", f"http://127.0.0.1:{port}", "outage") as t:
            for step in range(120):
                t.log(step, {"loss": float(step)})
                time.sleep(0.05)
                if step == 60:
                    os.killpg(server.pid, signal.SIGKILL)
                    server.wait()
                if step == 90:
                    server = serve(root, port)
        run, points = history(f"http://127.0.0.1:{port}", "outage")
        assert points == [(s, float(s)) for s in range(120)] and run.info.status == "FINISHED"
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def test_the_warning_names_one_command():
    import foundry.cli

    text = foundry.cli.parser().format_help()
    assert re.search(r"^\s+sync\s", text, re.M)
