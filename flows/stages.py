"""DVC's stages as Prefect tasks: the graph of a workspace, run in order, independent stages side by side.

DVC is the only cache: a task is `dvc repro --single-item STAGE`, so DVC's locks are true whoever ran it.
"""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prefect import get_run_logger, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE
from prefect.exceptions import PrefectHTTPStatusError
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed, State

from flows.graph import Node
from flows.outcome import RunFailed
from flows.remember import left_out
from flows.runner import PROGRESS, Action, StageFailed, StageProcess, StageStopped, die_with_parent
from flows.settings import environment
from flows.shares import WHOLE_MACHINE, Share
from flows.workspace import Workspace
from foundry.config import read_yaml
from foundry.config.pipelines import LOCKS
from foundry.utils.flow_runs import StageOutcome

PROGRESS_PERIOD = 2.0  # seconds
STATES: dict[Action, str] = {"ran": "Completed", "restored": "Restored", "up-to-date": "UpToDate"}


@dataclass(frozen=True)
class StageResult:
    """What DVC did with a stage, and how many seconds it took."""

    action: Action
    seconds: float


class StageRunner:
    """Runs stages of one workspace.

    When it is stopped, each stage that runs is stopped, so that it saves, and no other starts.

    Not a dataclass: Prefect would copy one that it finds among a task's arguments.

    Args:
        env: environment variables of the stages.
        share: the part of the machine that they may use.
    """

    def __init__(self, workspace: Workspace, env: dict[str, str] | None = None, share: Share = WHOLE_MACHINE) -> None:
        self.workspace, self.share, self.cancelled = workspace, share, False
        self.env = {**(env or {}), **share.env}
        self._lock = threading.Lock()
        self._running: dict[int, StageProcess] = {}

    def execute(
        self, stage: str, on_line: Callable[[str], None], timeout_s: float | None = None, force: bool = False
    ) -> StageResult:
        """Runs one stage to its end.

        Raises:
            StageFailed: if DVC ended with an error.
            StageStopped: if its time limit was reached, or this runner was stopped.
        """
        root = self.workspace.root
        process = StageProcess(stage, root, timeout_s, force=force, cores=self.share.cores, extra_env=self.env)
        with self._lock:
            if self.cancelled:
                raise StageStopped(f"stage {stage}: the run was cancelled before it began")
            self._running[id(process)] = process
        begin = time.monotonic()
        try:
            action = process.execute(on_line)
        finally:
            self._running.pop(id(process))
        if action == "ran" and left_out(root, stage):
            # The module of this checkout, in the workspace: DVC's command line cannot do it.
            command(root, [sys.executable, str(Path(__file__).with_name("remember.py")), stage], on_line)
        return StageResult(action, round(time.monotonic() - begin, 1))

    def stop(self) -> None:
        with self._lock:
            self.cancelled, running = True, list(self._running.values())
        threads = [threading.Thread(target=p.stop, args=("the run was cancelled",)) for p in running]
        for t in threads:
            t.start()
        for t in threads:
            t.join()


@task(task_run_name="{stage}", cache_policy=NO_CACHE, persist_result=False)
def dvc_stage(stage: str, runner: StageRunner, timeout_s: float | None, force: bool) -> State:
    """Runs one stage; the name of its state says what DVC did."""
    log = get_run_logger()

    def on_line(line: str) -> None:
        log.info(line)
        bar.see(line)

    try:
        with ProgressBar(stage) as bar:
            result = runner.execute(stage, on_line, timeout_s, force)
    except StageStopped as e:
        return Cancelled(message=str(e)) if runner.cancelled else Failed(name="TimedOut", message=str(e))
    return Completed(name=STATES[result.action], message=f"{result.action} in {result.seconds} s", data=result)


class ProgressBar:
    """A stage's own progress bar as an artifact of its task.

    A thread sends the newest state every `PROGRESS_PERIOD` seconds, so that a slow or absent server delays nothing; a
    state that the server did not take is superseded by the next one.
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
        sent, last = None, False
        while not last:
            last = self._ended.wait(PROGRESS_PERIOD)
            if (newest := self._newest) == sent:
                continue
            try:
                self._send(*newest)
                sent = newest
            except (httpx.HTTPError, PrefectHTTPStatusError):
                continue

    def _send(self, percent: float, line: str) -> None:
        if self.artifact is None:
            key = f"progress-{self.stage.replace('_', '-')}"
            self.artifact = create_progress_artifact(percent, key=key, description=line)
        else:
            update_progress_artifact(self.artifact, percent, description=line)


def run_graph(
    runner: StageRunner, nodes: list[Node], *, force: frozenset[str] = frozenset(), limits: dict[str, int] | None = None
) -> list[StageOutcome]:
    """Runs the stages. A stage that failed raises nothing: its outcome says so."""
    reasons = reasons_to_run(runner.workspace, {n.name for n in nodes}, force)
    futures: dict[str, PrefectFuture] = {}
    try:
        for node in nodes:
            named = dvc_stage.with_options(name=node.name, **retry_options(node, lambda: runner.cancelled))
            futures[node.name] = named.submit(
                node.name,
                runner,
                (limits or {}).get(node.name, node.policy.timeout_s),
                node.name in force,
                wait_for=[futures[u] for u in node.upstream if u in futures],
            )
        for future in futures.values():
            future.wait()
    except BaseException:
        runner.stop()
        raise
    return [_outcome(name, future.state, reasons.get(name, "")) for name, future in futures.items()]


def retry_options(node: Node, cancelled: Callable[[], bool]) -> dict[str, Any]:
    """Prefect's options for a stage's task: the retries of its policy, only for failures that a retry may repair."""

    def may_retry(task: Any, run: Any, state: State) -> bool:
        try:
            state.result()
        except StageFailed as e:
            return e.retryable and not cancelled()
        except BaseException:
            return False
        return False

    waits = [node.policy.retry_delay_s * 2**i for i in range(node.policy.retries)]
    return {"retries": len(waits), "retry_delay_seconds": waits or None, "retry_condition_fn": may_retry}


def _outcome(name: str, state: State, reason: str) -> StageOutcome:
    result = state.result(raise_on_failure=False) if state.is_completed() else None
    seconds, message = result.seconds if isinstance(result, StageResult) else "", ""
    if not state.is_completed():
        message = (state.message or "")[-600:]
    elif state.name != "Completed":
        reason = "nothing changed"
    why = reason or ("an input of it was built again" if state.is_completed() else "")
    return StageOutcome(stage=name, state=state.name, seconds=seconds, why=why, message=message)


def reasons_to_run(ws: Workspace, names: set[str], force: frozenset[str] = frozenset()) -> dict[str, str]:
    """For each stage that will run, what changed, in DVC's words; stages that only follow another one are left out."""
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
    locks = [read_yaml(ws.root / name) for name in LOCKS if (ws.root / name).exists()]
    built = {name for lock in locks for name in lock.get("stages", {})}
    lost = {name: f"{out} is not in the cache" for name, out in ws.lost.items()}
    reasons = {name: lost.get(name, "not built before") for name in names - built}
    reasons |= dict.fromkeys(force & names, "forced")
    for address, changes in status.items():
        name = address.rpartition(":")[2]
        if name in names and name not in reasons and (text := _changes(changes)):
            reasons[name] = text
    return reasons


def _changes(changes: list[Any]) -> str:
    """What `dvc status` lists for a stage, in one line. An output that is only missing is no reason.

    `params.yaml: train.lr; data/clean modified; 2 files of code (foundry/models/norm.py, …)`
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
        outs = change.get("changed outs", {})
        words += [f"{path} is not in the cache" for path, how in outs.items() if how == "not in cache"]
    if code:
        shown = [c for c in code if "__" not in c][:2] or code[:2]  # `__` is bold in the table, which is Markdown
        words.append(f"{len(code)} files of code ({', '.join(shown)}{', …' if len(code) > len(shown) else ''})")
    return "; ".join(words)


def command(root: Path, args: list[str], on_line: Callable[[str], None]) -> list[str]:
    """Runs a command of the project, streaming its lines; returns them. It dies with this process.

    Raises:
        RunFailed: with its last lines, if it fails.
    """
    process = subprocess.Popen(
        args,
        cwd=root,
        env={**environment(root), "FOUNDRY_PROGRESS": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        preexec_fn=die_with_parent,
    )
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
