"""DVC's stages as Prefect tasks: the graph of a workspace, run in order, independent stages side by side.

DVC stays the only cache: a task is `dvc repro --single-item STAGE`, so `dvc.lock` stays true whoever ran it.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Cancelled, Completed, Failed

from flows.graph import Node
from flows.outcome import RunFailed
from flows.remember import left_out
from flows.runner import PROGRESS, StageFailed, StageRun, Stopped, die_with_parent
from flows.settings import environment
from flows.shares import WHOLE, Share
from flows.workspace import Workspace
from foundry.config import read_yaml

PROGRESS_PERIOD = 2.0  # seconds
STATES = {"ran": "Completed", "restored": "Restored", "up-to-date": "UpToDate"}


class Crew:
    """The children of one flow run. When it is cancelled each is stopped, so that it saves, and none is started again.

    No dataclass: Prefect would copy one that it finds among a task's arguments.
    """

    def __init__(self, workspace: Workspace, env: dict[str, str] | None = None, share: Share = WHOLE) -> None:
        self.workspace, self.share, self.cancelled = workspace, share, False
        self.env = {**(env or {}), **share.env}
        self._lock = threading.Lock()
        self._runs: dict[int, StageRun] = {}

    def run(
        self, stage: str, on_line: Callable[[str], None], timeout_s: float | None = None, force: bool = False
    ) -> tuple[str, float]:
        """(what DVC did, seconds)."""
        run = StageRun(stage, self.workspace.root, timeout_s, force=force, cores=self.share.cores, extra_env=self.env)
        with self._lock:
            if self.cancelled:
                raise Stopped(f"stage {stage}: the run was cancelled before it began")
            self._runs[id(run)] = run
        begin = time.monotonic()
        try:
            how = run.run(on_line)
        finally:
            self._runs.pop(id(run))
        root = self.workspace.root
        if how == "ran" and left_out(root, stage):
            # The module of this checkout, in the workspace: DVC's command line cannot do it.
            command(root, [sys.executable, str(Path(__file__).with_name("remember.py")), stage], on_line)
        return how, round(time.monotonic() - begin, 1)

    def stop(self) -> None:
        with self._lock:
            self.cancelled, runs = True, list(self._runs.values())
        threads = [threading.Thread(target=run.stop, args=("the run was cancelled",)) for run in runs]
        for t in threads:
            t.start()
        for t in threads:
            t.join()


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def dvc_stage(stage: str, crew: Crew, timeout_s: float | None, force: bool):
    """Runs one stage; its state is named by what DVC did."""
    log = get_run_logger()

    def on_line(line: str) -> None:
        log.info(line)
        bar.see(line)

    try:
        with ProgressBar(stage) as bar:
            how, seconds = crew.run(stage, on_line, timeout_s, force)
    except Stopped as e:
        return Cancelled(message=str(e)) if crew.cancelled else Failed(name="TimedOut", message=str(e))
    return Completed(name=STATES[how], message=f"{how} in {seconds} s", data={"how": how, "seconds": seconds})


class ProgressBar:
    """A stage's own bar as an artifact of its task.

    A thread tells the newest state now and then, so that a server that is slow or away holds nothing up; what it did not take is told with the next state.
    """

    def __init__(self, stage: str) -> None:
        self.stage, self.artifact = stage, None
        self._newest: tuple[float, str] | None = None
        self._ended = threading.Event()
        # In the task's own context, by which Prefect knows whose artifact it is.
        self._thread = threading.Thread(target=copy_context().run, args=(self._work,), daemon=True, name="progress")

    def see(self, line: str) -> None:
        if found := PROGRESS.search(line):
            self._newest = min(100.0, float(found[1])), line[-120:]

    def __enter__(self) -> "ProgressBar":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is None and self._newest:
            self._newest = 100.0, self._newest[1]
        self._ended.set()
        self._thread.join(10.0)

    def _work(self) -> None:
        told, last = None, False
        while not last:
            last = self._ended.wait(PROGRESS_PERIOD)
            if (newest := self._newest) == told:
                continue
            try:
                self._tell(*newest)
                told = newest
            except (httpx.HTTPError, PrefectHTTPStatusError):
                continue

    def _tell(self, percent: float, line: str) -> None:
        if self.artifact is None:
            key = f"progress-{self.stage.replace('_', '-')}"
            self.artifact = create_progress_artifact(percent, key=key, description=line)
        else:
            update_progress_artifact(self.artifact, percent, description=line)


def run_graph(
    crew: Crew, nodes: list[Node], *, force: frozenset[str] = frozenset(), limits: dict[str, int] | None = None
) -> list[dict[str, Any]]:
    """Runs the stages; a row each: stage, state, seconds, why it ran, message. Raises nothing for a stage that failed."""

    reasons = why(crew.workspace, {n.name for n in nodes}, force)
    futures: dict[str, Any] = {}
    try:
        for node in nodes:
            named = dvc_stage.with_options(name=node.name, **retrying(node, lambda: crew.cancelled))
            futures[node.name] = named.submit(
                node.name,
                crew,
                (limits or {}).get(node.name, node.policy.get("timeout_s")),
                node.name in force,
                wait_for=[futures[u] for u in node.upstream if u in futures],
            )
        for future in futures.values():
            future.wait()
    except BaseException:
        crew.stop()
        raise
    return [_row(name, future.state, reasons.get(name, "")) for name, future in futures.items()]


def retrying(node: Node, cancelled: Callable[[], bool]) -> dict[str, Any]:
    """A task's options: the retries of a stage's policy, each wait twice the one before, only for what another try may mend."""

    def again(task, run, state) -> bool:
        try:
            state.result()
        except StageFailed as e:
            return e.mendable and not cancelled()
        except BaseException:
            return False
        return False

    retries, delay = node.policy.get("retries", 0), node.policy.get("retry_delay_s", 10)
    waits = [delay * 2**i for i in range(retries)]
    return {"retries": retries, "retry_delay_seconds": waits or None, "retry_condition_fn": again}


def _row(name: str, state: Any, reason: str) -> dict[str, Any]:
    data = state.result(raise_on_failure=False) if state.is_completed() else None
    ran = state.name == "Completed"
    return {
        "stage": name,
        "state": state.name,
        "seconds": data["seconds"] if isinstance(data, dict) else "",
        "why": (reason or "an input of it was built anew")
        if ran
        else reason
        if not state.is_completed()
        else "nothing changed",
        "message": "" if state.is_completed() else (state.message or "")[-600:],
    }


def why(ws: Workspace, names: set[str], force: frozenset[str] = frozenset()) -> dict[str, str]:
    """For each stage that will run, what changed, in DVC's words; a stage that only follows another one is not in it."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "status", "--json"],
        cwd=ws.root,
        env=environment(ws.root),
        capture_output=True,
        text=True,
    )
    try:
        status = json.loads(done.stdout)
    except ValueError:
        status = {}
    lock = ws.root / "dvc.lock"
    built = read_yaml(lock).get("stages", {}) if lock.exists() else {}
    lost = {name: f"{out} is not in the cache" for name, out in ws.lost.items()}
    told = {name: lost.get(name, "not built before") for name in names if name not in built} | {
        name: "forced" for name in force & names
    }
    for name, changes in status.items():
        if name in names and name not in told and (text := _changes(changes)):
            told[name] = text
    return told


def _changes(changes: list[Any]) -> str:
    """`params.yaml: train.lr; data/clean modified; 2 files of code (foundry/models/norm.py, …)` of what `dvc status` lists.

    What is only not there is no reason.
    """
    words: list[str] = []
    code: list[str] = []
    for change in changes:
        if isinstance(change, str):
            words.append(change)
            continue
        for path, how in change.get("changed deps", {}).items():
            if isinstance(how, dict):
                words.append(f"{path}: {', '.join(how)}")
            elif path.endswith(".py"):
                code.append(path)
            elif how != "deleted":
                words.append(f"{path} {how}")
        words += [
            f"{p} is not in the cache" for p, how in change.get("changed outs", {}).items() if how == "not in cache"
        ]
    if code:
        shown = [c for c in code if "__" not in c][:2] or code[:2]  # the table is Markdown
        words.append(f"{len(code)} files of code ({', '.join(shown)}{', …' if len(code) > len(shown) else ''})")
    return "; ".join(words)


def command(root: Path, args: list[str], on_line: Callable[[str], None]) -> list[str]:
    """Runs a command of the project's, streaming its lines; returns them. It dies with this process.

    Raises:
        RunFailed: with its last lines, if it fails.
    """
    process = subprocess.Popen(
        args, cwd=root, env={**environment(root), "FOUNDRY_PROGRESS": "0"}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, errors="replace", preexec_fn=die_with_parent,
    )  # fmt: skip
    lines = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            on_line(lines[-1])
        code = process.wait()
    except BaseException:
        process.terminate()
        raise
    if code:
        raise RunFailed("\n".join(lines[-10:]) or f"{' '.join(args)} ended with {code}")
    return lines or [""]


def foundry_command(root: Path, args: list[str], on_line: Callable[[str], None]) -> list[str]:
    """`foundry ARGS` in a project's folder, by the code of that folder."""
    return command(root, [sys.executable, "-m", "foundry.cli", *args], on_line)
