"""Cleans up after a `make ui` that was killed, or a machine that lost its power: processes, runs, schedules.

A run whose process is gone stays `Running` in Prefect's database and occupies the work pool's only slot, so that every
later run is late. This module uses plain HTTP, because importing Prefect's client takes seconds.
"""

import json
import os
import signal
import time
import urllib.request
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from flows.workspace import building, prune
from foundry.config import LockError
from foundry.utils.locks import exclusive

# Environment variables: the project, set by `make ui` for all that it starts; the flow run, set by Prefect's worker.
PROJECT_VAR, RUN_VAR = "FOUNDRY_UI", "PREFECT__FLOW_RUN_ID"
SAVING = 45.0  # seconds: a stage has 30 to save, then DVC and Prefect end
ENDING = 20.0  # seconds that a server has to end
GONE = "its process is gone: `make ui` or the machine ended while it ran. Retry resumes it; what was built is restored"
SKIPPED = "its time passed while `make ui` was not running"
LATE = timedelta(minutes=1)


class Processes(NamedTuple):
    """Living processes: servers and workers, and those of flow runs."""

    servers: list[psutil.Process]
    runs: list[psutil.Process]


def processes(root: Path) -> Processes:
    """The processes that any `make ui` of this project started."""
    servers, runs = [], []
    for p in psutil.process_iter():
        try:
            env = p.environ()
        except psutil.Error:
            continue
        if env.get(PROJECT_VAR) == str(root) and p.pid != os.getpid() and _lives(p):
            (runs if RUN_VAR in env else servers).append(p)
    return Processes(servers, runs)


def wait_ended(waited_for: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Waits until processes have ended; returns those that are still alive after so many seconds.

    A zombie has ended: its parent may be stopped, or may never read its exit code, for which `psutil.wait_procs` waits.
    """
    deadline = time.monotonic() + seconds
    while (living := [p for p in waited_for if _lives(p)]) and time.monotonic() < deadline:
        time.sleep(0.1)
    return living


def _lives(p: psutil.Process) -> bool:
    try:
        return p.is_running() and p.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def end_processes(root: Path) -> list[str]:
    """Ends the servers and workers that a killed `make ui` left.

    Waits for its run, which notices that its worker is gone, saves and ends by itself.

    Returns:
        One sentence per thing that was done.

    Raises:
        LockError: if a run does not end.
    """
    servers, runs = processes(root)
    found = bool(servers or runs)
    for signum in (signal.SIGTERM, signal.SIGKILL):
        for p in servers:
            try:
                p.send_signal(signum)
            except psutil.NoSuchProcess:
                continue
        servers = wait_ended(servers, ENDING)
    if living := wait_ended(runs, SAVING):
        pids = ", ".join(str(p.pid) for p in living)
        raise LockError(
            f"a run of the last `make ui` is still working in {root} (pid {pids}): wait for it or end it", living[0].pid
        )
    return ["ended the processes that a killed `make ui` had left"] if found else []


class FlowRuns:
    """The runs of one work pool in Prefect's database."""

    def __init__(self, api_url: str, pool: str) -> None:
        self.api_url, self.pool = api_url, {"work_pools": {"name": {"any_": [pool]}}}

    def recover(self, root: Path) -> list[str]:
        """Repairs what a killed `make ui` left. To be called before a worker starts.

        Runs whose process is gone become `Crashed`, scheduled runs whose time has passed `Skipped`; worktrees are
        removed.

        Returns:
            One sentence per crashed run, and one about the skipped ones.
        """
        prune(root)
        return self._crash(root) + self._skip()

    def _crash(self, root: Path) -> list[str]:
        at_work = {"state": {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}}
        found = self._post("flow_runs/filter", flow_runs=at_work, **self.pool)
        runs = [r for r in found if r["id"] != _builder(root)]
        if not runs:
            return []
        which = {"flow_runs": {"id": {"any_": [r["id"] for r in runs]}}}
        for task in self._post("task_runs/filter", task_runs=at_work, **which):
            self._set(f"task_runs/{task['id']}", "CRASHED", "Crashed", GONE)
        for run in runs:
            self._set(f"flow_runs/{run['id']}", "CRASHED", "Crashed", GONE)
            if (root / ".foundry" / "runs" / run["id"][:8] / "sweep.json").exists():
                from flows.sweep_tracking import close_sweep  # imports MLflow, which takes seconds

                close_sweep(root, run["id"][:8])
        return [f"the run {r['name']} was {r['state_name']} and is now Crashed: {GONE}" for r in runs]

    def _skip(self) -> list[str]:
        before = (datetime.now(UTC) - LATE).isoformat()
        due = {"state": {"name": {"any_": ["Scheduled", "Late"]}}, "expected_start_time": {"before_": before}}
        missed = [r for r in self._post("flow_runs/filter", flow_runs=due, **self.pool) if r["auto_scheduled"]]
        for run in missed:
            self._set(f"flow_runs/{run['id']}", "CANCELLED", "Skipped", SKIPPED)
        if not missed:
            return []
        return [f"{len(missed)} scheduled runs are skipped: their time passed while `make ui` was not running"]

    def _set(self, what: str, kind: str, name: str, message: str) -> None:
        self._post(f"{what}/set_state", state={"type": kind, "name": name, "message": message}, force=True)

    def _post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.api_url}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())


def _builder(root: Path) -> str:
    """The id of the flow run that builds the project now; empty if none does, or one that was started by hand."""
    try:
        with exclusive(building(root), note=None):
            return ""
    except LockError as e:
        return e.note
