"""The real servers: a run that the server itself schedules completes, a port in use is told, and nothing stays behind."""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from flows import ui as module
from foundry.config import ConfigError

ROOT = Path(__file__).resolve().parents[2]


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


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.mark.slow
def test_a_scheduled_run_completes_on_the_real_server_and_stop_leaves_nothing(toy, monkeypatch, tmp_path):
    for name in ("flows", "foundry"):
        shutil.copytree(ROOT / name, toy / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect-home"))
    text = (ROOT / "prefect.yaml").read_text()
    assert 'cron: "0 3 * * *"' in text and "active: false" in text
    (toy / "prefect.yaml").write_text(
        text.replace(
            '{cron: "0 3 * * *", timezone: UTC, slug: nightly, active: false}',
            "{interval: 15, slug: nightly, active: true}",
        )
    )
    ui = module.start(toy, 0, 0)
    pids = [p.pid for p in ui.children.values()]
    try:
        assert set(ui.children) == {"prefect-server", "mlflow", "worker"}
        for url in (f"{ui.prefect_url}/", f"{ui.mlflow_url}/"):
            with urllib.request.urlopen(url, timeout=10) as answer:
                assert answer.status == 200
        end, done = time.monotonic() + 300, []
        while not done and time.monotonic() < end and not ui.dead():
            runs = post(
                f"{ui.prefect_url}/api/flow_runs/filter",
                {"flow_runs": {"state": {"type": {"any_": ["COMPLETED", "FAILED", "CRASHED"]}}}},
            )
            done = [r for r in runs if r["auto_scheduled"]]
            time.sleep(1)
        assert done and done[0]["state_type"] == "COMPLETED", [(r["name"], r["state"]) for r in done] or module.tail(
            ui.log("worker"), 40
        )
        states = {t["state_name"] for t in post(f"{ui.prefect_url}/api/task_runs/filter", {})}
        assert states & {"Completed", "UpToDate"} and (toy / "out-three").read_text() == "three"
    finally:
        children = [c for pid in pids if psutil.pid_exists(pid) for c in psutil.Process(pid).children(recursive=True)]
        ui.stop()
    _, still = psutil.wait_procs([*children], timeout=20)
    assert not [p for p in still if p.status() != psutil.STATUS_ZOMBIE] and not any(psutil.pid_exists(p) for p in pids)
