"""Metrics reach MLflow exactly once, whatever happens to MLflow or the trainer, and never delay the trainer."""

import re
import shutil
import socket
import sqlite3
import subprocess
import sys
import time

import pytest
from tracking_servers import free_port, history, tracker, wait_for

from foundry.config import Runtime, TrackingError
from foundry.tracking import sync, tracking_uri
from foundry.tracking.names import FINGERPRINT, RESTORED, STAGE
from foundry.tracking.settings import connect, experiment_id
from foundry.tracking.spool import Spool


def test_a_run_has_its_points_parameters_tags_and_data_sets(root, uri):
    with tracker(root / ".foundry/train/complete", uri, "complete") as t:
        for step in range(5):
            t.log(step, {"loss": 1.0 / (step + 1)})
    run, points = history(uri, "complete")
    assert points == [(s, 1.0 / (s + 1)) for s in range(5)]
    assert run.info.status == "FINISHED" and run.data.params == {"train.lr": "0.1"} and run.data.tags[STAGE] == "train"
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


def test_after_a_rollback_the_later_point_of_a_step_is_that_of_the_run(root, uri):
    """MLflow has the points of the first trajectory already and cannot forget them; those of the second are later."""
    folder = root / ".foundry/train/back"
    with tracker(folder, uri, "back") as t:
        for step in range(1, 11):
            t.log(step, {"loss": float(step), **({"val_loss": 1.0} if step == 8 else {})})
        wait_for(lambda: not Spool(folder).pending(1).points)
        t.back_to(5)
        for step in range(6, 11):
            t.log(step, {"loss": -float(step), **({"val_loss": 2.0} if step == 8 else {})})
    run, _ = history(uri, "back")
    for key, expected in {
        "loss": {s: float(s) if s < 6 else -float(s) for s in range(1, 11)},
        "validation/loss": {8: 2.0},  # the group whose charts come first
    }.items():
        points = connect(uri).get_metric_history(run.info.run_id, key)
        assert {p.step: p.value for p in sorted(points, key=lambda p: p.timestamp)} == expected
        assert len({(p.step, p.timestamp) for p in points}) == len(points) > len(expected)
    assert run.data.metrics["loss"] == -10.0 and run.data.metrics["validation/loss"] == 2.0


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
    assert len(Spool(folder).pending(10**6).points) == 200  # the run's own store, when it is back, still gets all


def test_a_run_that_cannot_be_read_keeps_no_other_from_being_delivered(tmp_path, uri):
    monkey = tmp_path / "project"
    for name in ("aaa", "zzz"):
        with tracker(monkey / ".foundry/train" / name, f"http://127.0.0.1:{free_port()}", name) as t:
            t.log(0, {"loss": 1.0})
    (monkey / ".foundry/train/aaa/run.json").write_text("{cut off")
    with pytest.raises(TrackingError, match="run aaa"):
        sync(monkey / ".foundry", uri)
    assert history(uri, "zzz")[1] == [(0, 1.0)]


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
    assert len(Spool(root / ".foundry/hole").pending(10**6).points) == 200


def test_a_killed_trainer_loses_no_point_and_its_run_is_closed_as_killed(root, uri):
    folder = root / ".foundry/train/dead"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom foundry.tracking import Tracker\n"
        "t = Tracker(Path(sys.argv[1]), uri=sys.argv[2], experiment='e', run_name='r', fingerprint='dead')\n"
        "t.__enter__()\n"
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
    assert [(r[0], r[1], r[3]) for r in again.pending().points] == [("a", 1.0, 1), ("a", 2.0, 2)]


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


def test_the_warning_names_one_command():
    import foundry.cli

    text = foundry.cli.parser().format_help()
    assert re.search(r"^\s+sync\s", text, re.M)


def store(root, tables, name):
    """Another SQLite store, which is empty. It is a copy, because creating one takes seconds."""
    shutil.copy(tables, root / f".foundry/{name}.db")
    return f"sqlite:///{root}/.foundry/{name}.db"


def test_a_locked_store_delays_nothing_and_gets_all_later(root, tables, monkeypatch, caplog):
    """Another process has SQLite's lock during the training; MLflow itself waits 20 s for it."""
    from foundry.utils.log import get_logger

    get_logger().propagate = True
    monkeypatch.setattr("foundry.tracking.run.CLOSE_TIMEOUT", 1.0)
    own = store(root, tables, "locked")
    folder = root / ".foundry/locked/one"
    holder = sqlite3.connect(own.removeprefix("sqlite:///"), isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with tracker(folder, own, "locked") as t:
        for step in range(50):
            t.log(step, {"loss": float(step)})
    assert "did not take everything" in caplog.text and len(Spool(folder).pending(10**6).points) == 50
    holder.execute("ROLLBACK")
    holder.close()
    (root / ".foundry/locked/train").mkdir()
    folder.rename(root / ".foundry/locked/train/one")
    sync(root / ".foundry/locked")
    run, points = history(own, "locked")
    assert points == [(s, float(s)) for s in range(50)] and run.info.status == "FINISHED"


def test_a_clock_that_is_set_back_changes_neither_the_order_nor_the_newest_value(root, uri, monkeypatch):
    now = time.time()
    with tracker(root / ".foundry/train/clock", uri, "clock") as t:
        for step in range(20):
            monkeypatch.setattr(time, "time", lambda back=3600 * (step >= 10), s=step: now + s - back)
            t.log(step, {"loss": float(step)})
    client = connect(uri)
    run, points = history(uri, "clock")
    assert points == [(s, float(s)) for s in range(20)] and run.data.metrics["loss"] == 19.0
    times = [m.timestamp for m in sorted(client.get_metric_history(run.info.run_id, "loss"), key=lambda m: m.step)]
    assert times == sorted(times)


def test_a_second_process_that_tracks_the_same_run_changes_nothing(root, uri):
    folder = root / ".foundry/train/twice"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom foundry.tracking import Tracker\n"
        "run = {'experiment': 'e', 'run_name': 'other', 'fingerprint': 'twice'}\n"
        "with Tracker(Path(sys.argv[1]), uri=sys.argv[2], **run) as t:\n"
        "    t.log(5, {'loss': -1.0})\n    print(t.enabled)\n    raise SystemExit(1)\n"
    )
    with tracker(folder, uri, "twice") as t:
        t.log(1, {"loss": 1.0})
        second = subprocess.run([sys.executable, "-c", code, str(folder), uri], stdout=subprocess.PIPE, text=True)
        assert (second.returncode, second.stdout.split()) == (1, ["False"])
        t.log(2, {"loss": 2.0})
    run, points = history(uri, "twice")
    assert points == [(1, 1.0), (2, 2.0)] and (run.info.status, run.info.run_name) == ("FINISHED", "r")


def test_a_disk_that_is_full_for_a_while_delays_the_points_and_stops_nothing(root, uri, monkeypatch):
    import os

    write = os.write
    full = {"now": False}

    def maybe(fd, data):
        if full["now"] and data.startswith((b"{", b"\n")):
            raise OSError(28, "No space left on device")
        return write(fd, data)

    monkeypatch.setattr("foundry.tracking.spool.os.write", maybe)
    with tracker(root / ".foundry/train/full", uri, "full") as t:
        for step in range(30):
            full["now"] = 10 <= step < 20
            t.log(step, {"loss": float(step)})
            assert bool(t._delivery.spool.unwritten) == full["now"]
    assert history(uri, "full")[1] == [(s, float(s)) for s in range(30)]


def test_a_model_that_was_registered_before_its_training_was_delivered_has_one_run(root, uri, tmp_path):
    """MLflow was away during training and back for the registration, which created a run in place of the training's."""
    folder = tmp_path / ".foundry/train/early"
    with tracker(folder, f"http://127.0.0.1:{free_port()}", "early") as t:
        t.log(1, {"loss": 1.0})
    client = connect(uri)
    where = experiment_id(client, uri, "e")
    tags = {FINGERPRINT: "early", RESTORED: "true"}
    made = client.create_run(where, run_name="restored-early", tags=tags).info.run_id
    client.log_metric(made, "test_bits_per_byte", 1.25)
    assert sync(tmp_path / ".foundry", uri) == 1
    run, points = history(uri, "early")
    assert run.info.run_id == made and points == [(1, 1.0)] and run.data.metrics["test_bits_per_byte"] == 1.25
    assert run.info.run_name == "r" and RESTORED not in run.data.tags and run.data.params == {"train.lr": "0.1"}


@pytest.mark.slow
def test_a_process_killed_while_it_makes_the_store_leaves_none_that_is_half_made(tmp_path):
    """MLflow creates its tables one by one; it never recovers if some of them are missing."""
    path = tmp_path / "mlflow.db"
    code = "import sys\nfrom foundry.tracking.settings import connect\nconnect(sys.argv[1])"
    child = subprocess.Popen([sys.executable, "-c", code, f"sqlite:///{path}"])
    new = tmp_path / ".mlflow.db.new"
    while not (new.exists() and new.stat().st_size > 100_000):
        assert child.poll() is None
        time.sleep(0.001)
    child.kill()
    child.wait()
    assert not path.exists()
    assert connect(f"sqlite:///{path}").search_experiments() and path.exists() and not new.exists()


def test_a_store_that_lost_the_run_gets_it_again(root, tables):
    """The database was deleted between two starts."""
    own = store(root, tables, "lost")
    folder = root / ".foundry/train/lost"
    with tracker(folder, own, "lost") as t:
        t.log(1, {"loss": 1.0})
    store(root, tables, "lost")
    with tracker(folder, own, "lost") as t:
        t.log(2, {"loss": 2.0})
    assert history(own, "lost")[1] == [(1, 1.0), (2, 2.0)]
