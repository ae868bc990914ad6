"""Prefect's HTTP API, as far as the tests ask it."""

import json
import time
import urllib.error
import urllib.request

import psutil

ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Api:
    """One server.

    Args:
        url: the address of the UI; the API is at `/api` below it.
    """

    def __init__(self, url):
        self.url = url

    def patch(self, path, body):
        return self.post(path, body, method="PATCH")

    def post(self, path, body=None, method="POST"):
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            json.dumps(body or {}).encode(),
            {"Content-Type": "application/json"},
            method=method,
        )
        for _ in range(20):
            try:
                with urllib.request.urlopen(request, timeout=30) as answer:
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as e:
                if e.code != 503:  # its database is busy for a moment
                    raise
                time.sleep(0.5)
        raise TimeoutError(path)

    def get(self, path):
        with urllib.request.urlopen(f"{self.url}/api/{path}", timeout=30) as answer:
            return json.loads(answer.read())

    def start(self, deployment, name=None, **options):
        """Starts a run of a deployment (`pretrain/manual`); returns its id."""
        found = self.get(f"deployments/name/{deployment}")
        body = {"parameters": {"options": options}, **({"name": name} if name else {})}
        return self.post(f"deployments/{found['id']}/create_flow_run", body)["id"]

    def run(self, run_id):
        """The run, also while the server is away for a moment."""
        for _ in range(60):
            try:
                return self.get(f"flow_runs/{run_id}")
            except OSError:
                time.sleep(1)
        raise TimeoutError(self.url)

    def until(self, run_id, states=ENDED, seconds=120):
        """Waits for a state's type; returns the run."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            run = self.run(run_id)
            if run["state_type"] in states:
                return run
            time.sleep(0.5)
        raise TimeoutError(f"{run['name']} is {run['state']['name']}: {run['state'].get('message')}")

    def retry(self, run_id):
        """As the UI's button does."""
        self.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "SCHEDULED", "name": "AwaitingRetry"}})

    def cancel(self, run_id):
        self.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def tasks(self, run_id):
        """{task: name of its state}; of a run that was tried again, those of the last try."""
        body = {"flow_runs": {"id": {"any_": [run_id]}}, "sort": "EXPECTED_START_TIME_ASC"}
        return {r["name"]: r["state_name"] for r in self.post("task_runs/filter", body)}

    def artifacts(self, run_id):
        """{key: id}."""
        found = self.post("artifacts/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {a["key"]: a["id"] for a in found}


def wait_until(condition, seconds=60):
    """What the condition gave at last."""
    end = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for_text(path, seconds=90):
    wait_until(lambda: path.exists() and path.read_text(), seconds)
    return path.read_text()


def wait_gone(pid, seconds=30):
    return wait_until(lambda: not alive(pid), seconds)
