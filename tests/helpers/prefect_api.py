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
        url: of the UI; the API lies below it.
    """

    def __init__(self, url):
        self.url = url

    def post(self, path, body=None):
        request = urllib.request.Request(
            f"{self.url}/api/{path}", json.dumps(body or {}).encode(), {"Content-Type": "application/json"}
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

    def start(self, deployment, **options):
        """Starts a run of a deployment (`pretrain/manual`); returns its id."""
        found = self.get(f"deployments/name/{deployment}")
        return self.post(f"deployments/{found['id']}/create_flow_run", {"parameters": {"options": options}})["id"]

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

    def cancel(self, run_id):
        self.post(f"flow_runs/{run_id}/set_state", {"state": {"type": "CANCELLING", "name": "Cancelling"}})

    def tasks(self, run_id):
        """{task: name of its state}."""
        runs = self.post("task_runs/filter", {"flow_runs": {"id": {"any_": [run_id]}}})
        return {r["name"]: r["state_name"] for r in runs}


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def wait_for_text(path, seconds=90):
    end = time.time() + seconds
    while not (path.exists() and path.read_text()) and time.time() < end:
        time.sleep(0.05)
    return path.read_text()


def wait_gone(pid, seconds=30):
    end = time.time() + seconds
    while alive(pid) and time.time() < end:
        time.sleep(0.05)
    return not alive(pid)
