"""The real servers: a run that the server itself schedules completes, a port in use is told, and nothing stays behind."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

import psutil
import pytest
from prefect_api import Api
from toy import ROOT, git

from flows import ui as module
from flows.deploy import deploy
from foundry.config import ConfigError


def test_a_port_in_use_is_told_with_the_option_and_nothing_starts(tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        port = s.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use .* --mlflow-port"):
            module.start(tmp_path, 0, port)
        done = subprocess.run(
            [sys.executable, "-m", "flows.ui", "--prefect-port", str(port)], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 1 and "--prefect-port" in done.stderr and "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def heard():
    """A listener on loopback and what it was told."""
    told = []

    class Listener(BaseHTTPRequestHandler):
        def do_POST(self):
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/hook", told
    server.shutdown()


def until(condition, seconds):
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(1)
    return found


@pytest.mark.slow
def test_a_scheduled_run_completes_a_failed_one_is_told_and_stop_leaves_nothing(toy, monkeypatch, tmp_path, heard):
    for name in ("flows", "foundry"):
        (toy / name).symlink_to(ROOT / name)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    text = (ROOT / "prefect.yaml").read_text()
    assert text.count("active: false") == text.count("schedules:") == 2
    nightly = '{cron: "0 3 * * *", timezone: UTC, slug: nightly, active: false}'
    (toy / "prefect.yaml").write_text(text.replace(nightly, "{interval: 600, slug: nightly, active: true}"))
    ui = module.start(toy, 0, 0, webhook=heard[0])
    api = Api(ui.prefect_url)
    pids = [p.pid for p in ui.children.values()]
    try:
        assert set(ui.children) == {"prefect-server", "mlflow", "worker"}
        for url in (f"{ui.prefect_url}/", f"{ui.mlflow_url}/"):
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.status == 200
        due = {"flow_runs": {"state": {"type": {"any_": ["SCHEDULED"]}}}, "sort": "EXPECTED_START_TIME_ASC"}
        scheduled = until(lambda: [r for r in api.post("flow_runs/filter", due) if r["auto_scheduled"]], 60)[0]
        assert scheduled["name"] and scheduled["deployment_version"] == git(toy, "describe", "--always", "--dirty")
        api.post(f"flow_runs/{scheduled['id']}/set_state", {"state": {"type": "SCHEDULED"}, "force": True})  # now
        run = api.until(scheduled["id"], seconds=240)
        assert run["state_type"] == "COMPLETED", run["state"]["message"] + module.tail(ui.log("worker"), 40)
        assert run["name"].startswith("nightly 20")
        assert {"Completed"} <= set(api.tasks(run["id"]).values())
        assert [p.parent.name for p in (toy / ".foundry/runs").glob("*/dvc.lock")] == [run["id"][:8]]
        (toy / "todo-one").write_text("fail")
        (toy / "in-one").write_text("other")
        git(toy, "commit", "-qam", "other")
        failed = api.until(api.start("pretrain/manual"))
        assert failed["state_type"] == "FAILED" and until(lambda: heard[1], 60)
        assert heard[1][0]["state"] == "Failed" and heard[1][0]["run"] == failed["name"]
        assert "the reason of the failure" in heard[1][0]["message"] and failed["id"] in heard[1][0]["page"]
    finally:
        children = [c for pid in pids if psutil.pid_exists(pid) for c in psutil.Process(pid).children(recursive=True)]
        ui.stop()
    _, still = psutil.wait_procs([*children], timeout=20)
    assert not [p for p in still if p.status() != psutil.STATUS_ZOMBIE] and not any(psutil.pid_exists(p) for p in pids)


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
