"""The real servers: a run that the server schedules completes, a port in use is reported, nothing is left behind."""

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
from prefect_api import Api, wait_for_text, wait_gone, wait_until
from served_process import make_export, tiny_model
from toy import ROOT, git

from flows import guard
from flows import ui as module
from flows.deploy import deploy
from flows.recovery import PROJECT_VAR, RUN_VAR, processes
from foundry.config import ConfigError, LockError
from foundry.utils.served import addresses


def test_a_port_in_use_is_reported_with_the_option_and_nothing_starts(tmp_path):
    with pytest.raises(ConfigError, match="prefect_port: a port is a number from 0 to 65535, got 99999"):
        module.start(tmp_path, 99999, 0)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use .* `make ui mlflow_port=N`"):
            module.start(tmp_path, 0, port)
        done = subprocess.run(
            [sys.executable, "-m", "flows.ui", "--prefect-port", str(port)],
            cwd=ROOT,
            env={**os.environ, "FOUNDRY_ROOT": str(tmp_path)},
            capture_output=True,
            text=True,
        )
    assert done.returncode == 1 and "make ui prefect_port=N" in done.stderr and "Traceback" not in done.stderr
    assert {p.name for p in tmp_path.rglob("*") if p.is_file()} <= {"lock", "foundry.lock"}


def test_two_projects_do_not_serve_from_one_prefect_home(tmp_path, monkeypatch):
    """There would be two servers on one database, and a start of one would take the runs of the other for dead."""
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "shared"))
    with (
        module.only_one(tmp_path / "one"),
        pytest.raises(LockError, match=f"a `make ui` with PREFECT_HOME=.*pid {os.getpid()}"),
        module.only_one(tmp_path / "two"),
    ):
        pass
    with module.only_one(tmp_path / "two"):
        pass


def test_a_run_that_ended_under_its_stopped_worker_is_not_waited_for(tmp_path, capsys):
    """It stays a zombie until the worker, which is suspended meanwhile, reads its exit code."""
    worker = subprocess.Popen(
        ["sh", "-c", f"{RUN_VAR}=1 sleep 300 & wait"],
        env={**os.environ, PROJECT_VAR: str(tmp_path)},
        start_new_session=True,
    )
    try:
        assert wait_until(lambda: processes(tmp_path).runs, 30)
        ui = module.Ui(tmp_path, "", "", children={"worker": worker})
        ui.end_runs()
        assert "a run is in progress" in (said := capsys.readouterr().out) and "did not end" not in said
        assert worker.wait(10) == -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(worker.pid, signal.SIGKILL)
        worker.wait()


def test_a_server_that_ends_at_once_is_not_waited_for(tmp_path):
    """The guard is in `wait` when SIGTERM comes, and waits for the same child again."""
    child = f"import time; open({str(tmp_path / 'up')!r}, 'w').write('up'); time.sleep(300)"
    command = [sys.executable, "-S", str(module.GUARD), sys.executable, "-S", "-c", child]
    p = subprocess.Popen(command, start_new_session=True)
    try:
        wait_for_text(tmp_path / "up", 30)
        p.terminate()
        assert p.wait(guard.GRACE - 3) == -signal.SIGKILL  # the whole group, itself included
    finally:
        p.kill()
        p.wait()


@pytest.fixture
def heard():
    """A listener on loopback and what it received."""
    received = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", received
    server.shutdown()


@pytest.fixture
def start(toy, tmp_path):
    """Starts `make ui`: (its process, the lines that it prints, Prefect's API, MLflow's address)."""
    for name in ("flows", "foundry"):
        (toy / name).symlink_to(ROOT / name)
    text = (ROOT / "prefect.yaml").read_text()
    assert text.count("active: false") == text.count("schedules:") == 2
    nightly = '{cron: "0 3 * * *", timezone: UTC, slug: nightly, active: false}'
    (toy / "prefect.yaml").write_text(text.replace(nightly, "{interval: 600, slug: nightly, active: true}"))
    late = {f"PREFECT_SERVER_SERVICES_LATE_RUNS_{k}_SECONDS": "2" for k in ("AFTER", "LOOP")}
    env = {**os.environ, **late, "PREFECT_HOME": str(tmp_path / "prefect-home"), "FOUNDRY_ROOT": str(toy)}
    env.pop("PREFECT_API_URL", None)
    started = []

    def begin(*options):
        command = [sys.executable, "-m", "flows.ui", "--prefect-port", "0", "--mlflow-port", "0", *options]
        p = subprocess.Popen(command, cwd=toy, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        started.append(p)
        lines = []
        threading.Thread(target=lambda: lines.extend(iter(p.stdout.readline, "")), daemon=True).start()
        assert wait_until(lambda: p.poll() is not None or "Ctrl-C stops everything" in "".join(lines[-1:]), 240), lines
        found = [re.search(rf"^{name} +(http://[^/]+)/", "".join(lines), re.M) for name in ("Prefect", "MLflow")]
        assert all(found) or "already runs here" in "".join(lines), lines
        return p, lines, *(Api(m[1]) if i == 0 else m[1] for i, m in enumerate(found) if m)

    yield begin
    for p in started:
        p.terminate()
        p.wait()


@pytest.fixture
def served(toy, start, heard, tokenizer):
    """With a model, which nobody registered, behind the API."""
    make_export(toy / "artifacts/export", tiny_model(), tokenizer)
    return start("--webhook", heard[0], "--serve-port", "0")


@pytest.mark.slow
def test_the_servers_schedule_run_report_restart_when_killed_and_leave_nothing(toy, served, heard):
    p, lines, api, mlflow = served
    model = re.search(r"^server +(http://127\.0\.0\.1:\d+)/$", "".join(lines), re.M)[1]
    for url in (f"{api.url}/", f"{mlflow}/", f"{model}/"):
        with urllib.request.urlopen(url, timeout=10) as answer:
            assert answer.status == 200
    due = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
    scheduled = wait_until(lambda: [r for r in api.post("flow_runs/filter", due) if r["auto_scheduled"]], 60)[0]
    assert scheduled["name"] and scheduled["deployment_version"] == git(toy, "describe", "--always", "--dirty")
    api.post(f"flow_runs/{scheduled['id']}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})  # now
    run = api.until(scheduled["id"], seconds=240)
    log = toy / ".foundry/ui/worker.log"
    assert run["state_type"] == "COMPLETED", run["state"]["message"] + module.tail(log, 40)
    assert run["name"].startswith("nightly 20")
    assert {"Completed"} <= set(api.tasks(run["id"]).values())
    assert [p.parent.name for p in (toy / ".foundry/runs").glob("*/dvc.lock")] == [run["id"][:8]]

    ours = psutil.Process(p.pid).children()
    children = [c.children()[0] if "guard.py" in " ".join(c.cmdline()) else c for c in ours]
    assert [" ".join(c.cmdline()[2:4]) for c in children] == [
        "prefect server",
        "mlflow server",
        "prefect worker",
        "foundry.cli serve",
    ]
    for child in children:
        child.kill()
    assert wait_until(lambda: "".join(lines).count("(killed by signal 9): starting it again") == 4, 30), lines
    for url in (f"{api.url}/api/health", f"{mlflow}/health", f"{model}/ready"):
        assert wait_until(lambda url=url: answers(url), 120)
    body = json.dumps({"prompt": "The", "max_tokens": 3, "min_tokens": 3}).encode()
    request = urllib.request.Request(f"{model}/v1/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["usage"]["completion_tokens"] == 3

    weekly = api.get("deployments/name/backup/weekly")
    changed = {"active": True, "schedule": {"cron": "30 4 * * *", "timezone": "Europe/Berlin"}}
    api.patch(f"deployments/{weekly['id']}/schedules/{weekly['schedules'][0]['id']}", changed)
    api.post(f"deployments/{weekly['id']}/schedules", [{"active": True, "schedule": {"cron": "5 4 * * *"}}])
    before = api.get("deployments/name/backup/weekly")["schedules"]
    deploy(toy, f"{api.url}/api")
    assert api.get("deployments/name/backup/weekly")["schedules"] == before and len(before) == 2
    assert {(s["slug"], s["active"], s["schedule"]["cron"]) for s in before} == {
        ("weekly", True, "30 4 * * *"),
        (None, True, "5 4 * * *"),
    }

    (toy / "todo-one").write_text("nap 9")
    (toy / "in-one").write_text("other")
    git(toy, "commit", "-qam", "other")
    first, second = api.start("pretrain/manual"), api.start("pretrain/manual")  # one at a time: the second is late
    assert wait_until(lambda: [h for h in heard[1] if h["state"] == "Late"], 60)
    for late in (first, second):
        assert api.until(late)["state_type"] == "COMPLETED"
    (toy / "todo-one").write_text("fail")
    (toy / "in-one").write_text("another")
    git(toy, "commit", "-qam", "another")
    failed = api.until(api.start("pretrain/manual"))
    assert failed["state_type"] == "FAILED"
    (call,) = wait_until(lambda: [h for h in heard[1] if h["state"] == "Failed"], 60)
    assert call["run"] == failed["name"] and failed["id"] in call["page"]
    assert "the reason of the failure" in call["message"]

    assert len(processes(toy).servers) >= 5
    assert wait_until(lambda: not processes(toy).runs, 30)  # the failed run reported its state, then its process ends
    p.send_signal(signal.SIGINT)
    assert p.wait(60) == 0 and "stopping ..." in "".join(lines[-1:])
    assert processes(toy) == ([], [])


def begin_run(api, toy, number):
    """Starts a run and waits until its first stage runs: (its id, the stage's process)."""
    (toy / "one.pid").unlink(missing_ok=True)
    (toy / "todo-one").write_text("sleep")
    (toy / "in-one").write_text(f"input {number}")
    git(toy, "commit", "-qam", f"input {number}")
    run = api.start("pretrain/manual")
    return run, int(wait_for_text(toy / "one.pid", 120))


@pytest.mark.slow
def test_a_closed_terminal_a_power_cut_and_a_kill_leave_no_process_no_blocked_queue_and_no_worktree(
    toy, start, tmp_path
):
    p, lines, api, _ = start()
    second, words = start()[:2]
    assert second.wait(60) == 1 and f"`make ui` already runs here: {api.url}" in "".join(words), words
    assert addresses(toy).prefect == api.url and "Traceback" not in "".join(words)

    run, stage = begin_run(api, toy, 1)
    p.send_signal(signal.SIGHUP)  # the terminal is closed
    assert p.wait(120) == 128 + signal.SIGHUP and "a run is in progress" in "".join(lines), lines
    assert wait_gone(stage, 1) and (toy / "one.saved").exists() and processes(toy) == ([], [])
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect-home/prefect.db")) as db:
        (state,) = db.execute("SELECT state_type FROM flow_run WHERE id = ?", [run]).fetchone()
    assert state == "CRASHED"  # reported before the server ended
    assert addresses(toy) is None and list((toy / ".foundry/runs").glob("*/tree")) == []

    p, _, api, _ = start()
    run, stage = begin_run(api, toy, 2)
    everything = [psutil.Process(p.pid), *(q for found in processes(toy) for q in found)]
    assert stage in [q.pid for q in everything]
    for q in everything:  # the machine loses its power
        with contextlib.suppress(psutil.NoSuchProcess):
            q.kill()
    psutil.wait_procs(everything, 30)
    assert list((toy / ".foundry/runs").glob("*/tree"))
    with contextlib.closing(sqlite3.connect(tmp_path / "prefect-home/prefect.db")) as db, db:  # and stays off
        (count,) = db.execute(
            "SELECT count(*) FROM flow_run WHERE auto_scheduled AND state_type = 'SCHEDULED'"
        ).fetchone()
        db.execute(
            "UPDATE flow_run SET expected_start_time = datetime(expected_start_time, '-1 year'), "
            "next_scheduled_start_time = datetime(next_scheduled_start_time, '-1 year') "
            "WHERE auto_scheduled AND state_type = 'SCHEDULED'"
        )
    assert count > 1

    p, lines, api, _ = start()
    crashed = api.run(run)
    assert crashed["state_type"] == "CRASHED" and "its process is gone" in crashed["state"]["message"], crashed["state"]
    assert set(api.tasks(run).values()) <= {"Crashed", "Pending"} and "is now Crashed" in "".join(lines), lines
    skipped = api.post("flow_runs/filter", {"flow_runs": {"state": {"name": {"any_": ["Skipped"]}}}})
    assert len(skipped) == count and f"{count} scheduled runs are skipped" in "".join(lines), lines
    assert list((toy / ".foundry/runs").glob("*/tree")) == []
    (toy / "todo-one").unlink()
    assert api.until(api.start("pretrain/manual"), seconds=240)["state_type"] == "COMPLETED"  # no slot is held

    assert wait_until(lambda: not processes(toy).runs, 60)  # the run has sent the server its last state
    p.kill()  # only this process
    assert wait_until(lambda: processes(toy) == ([], []), 60), processes(toy)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


def test_without_a_server_deploying_says_how_to_have_one(toy):
    env = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"} | {"FOUNDRY_ROOT": str(toy)}
    command = [sys.executable, "-m", "flows.deploy"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "start one with `make ui`" in done.stderr and "Traceback" not in done.stderr
    env["PREFECT_API_URL"] = "http://127.0.0.1:9/api"
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and "does not answer" in done.stderr
    with pytest.raises(ConfigError, match="http:// or https:// address, got 'ftp://x'"):
        deploy(toy, "http://127.0.0.1:9/api", "ftp://x")
