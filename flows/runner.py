"""One DVC stage as a well-behaved child: its own session, streamed lines, a deadline, a stop that lets a trainer save.

SIGINT to the whole group is the stop that DVC survives cleanly; SIGTERM and SIGKILL follow when it is not heard. When this process dies the kernel ends the
child, and the stage dies with it: no orphan trains on.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.settings import environment
from foundry.utils.dvc_files import repair_dvc

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
CHATTER = re.compile(
    r"^(To track the changes with git|\s*git add |To enable auto staging|\s*dvc config core.autostage|Use `dvc push`)"
)


class Stopped(RuntimeError):
    """The stage was stopped: by a deadline or because the run was cancelled. Trying again would undo that."""


EXITED = re.compile(r"exited with (-?\d+)")
PROGRESS = re.compile(r"(\d{1,3})%\|")


class StageFailed(RuntimeError):
    """DVC ended with an error; the message holds the stage's last lines.

    Attributes:
        mendable: whether another try may help: the stage was killed, or said so (exit code 75). A mistake in data or parameters stays one.
    """

    def __init__(self, message: str, mendable: bool = False) -> None:
        super().__init__(message)
        self.mendable = mendable


def mendable(lines: list[str]) -> bool:
    """Whether the stage's exit code, which DVC tells in its last lines, is 75 (try later) or a signal's."""
    codes = [int(m[1]) for line in lines[-20:] if (m := EXITED.search(line))]
    return bool(codes) and (codes[-1] == os.EX_TEMPFAIL or codes[-1] < 0 or codes[-1] > 128)


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel ends the child when this process dies."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)  # PR_SET_PDEATHSIG; dvc alone does not hear SIGINT while a stage runs


def end_with_worker() -> None:
    """In a process that Prefect's worker started: have it end as by SIGTERM when the worker dies.

    Left alone such a run goes on until it next writes to the worker's pipe, out of reach of the UI's cancel button.
    """
    worker = os.getppid()
    if "PREFECT__FLOW_RUN_ID" not in os.environ or worker == 1:
        return

    def watch() -> None:
        while os.getppid() == worker:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="worker-watch").start()


@dataclass
class StageRun:
    """A run of `dvc repro --single-item STAGE`.

    Args:
        timeout_s: deadline; None is none.
        grace_s: how long a stage may take to save after SIGINT.
        cores: those that it may use; empty is all.
    """

    stage: str
    root: Path
    timeout_s: float | None = None
    grace_s: float = 30.0
    force: bool = False
    cores: frozenset[int] = frozenset()
    extra_env: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    stopped: str | None = None
    _process: subprocess.Popen | None = None

    def run(self, on_line: Callable[[str], None]) -> str:
        """Runs to the end: `ran`, `restored` (from DVC's run cache) or `up-to-date`.

        Raises:
            StageFailed, Stopped: see there.
        """
        command = [
            sys.executable,
            "-m",
            "dvc",
            "--wait-for-lock",
            "repro",
            "--single-item",
            self.stage,
            *["--force"] * self.force,
        ]
        for line in repair_dvc(self.root):
            on_line(line)
        if self.stopped:
            raise self._was_stopped()
        env = {**environment(self.root), "SHELL": "/bin/sh", **self.extra_env}
        self._process = subprocess.Popen(
            command, cwd=self.root, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", bufsize=1, start_new_session=True, preexec_fn=self._prepare,
        )  # fmt: skip
        if self.stopped:  # while the process was made
            self.stop(self.stopped)
        timer = threading.Timer(self.timeout_s, self.stop, ("its time limit was reached",)) if self.timeout_s else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            for raw in self._process.stdout:
                line = raw.rstrip().rsplit("\r", 1)[-1].rstrip()  # of a progress bar the last state
                if line and not CHATTER.match(line):
                    self.lines = [*self.lines[-199:], line]
                    on_line(line)
            code = self._process.wait()
        except BaseException:
            self.stop("the run was cancelled")
            raise
        finally:
            if timer:
                timer.cancel()
        if self.stopped:
            raise self._was_stopped()
        if code:
            told = f"stage {self.stage} failed (dvc ended with {code}):\n" + "\n".join(self.lines[-20:])
            raise StageFailed(told, mendable(self.lines) or code < 0)
        text = "\n".join(self.lines)
        return (
            "restored"
            if "is cached - skipping run" in text
            else "up-to-date"
            if "didn't change, skipping" in text
            else "ran"
        )

    def _was_stopped(self) -> Stopped:
        return Stopped(f"stage {self.stage}: {self.stopped}; the next run resumes, a training from its checkpoint")

    def _prepare(self) -> None:
        """In the child, before it becomes DVC."""
        die_with_parent()
        if self.cores:
            os.sched_setaffinity(0, self.cores)

    def stop(self, why: str) -> None:
        """Ends the child's whole group; returns when it is gone."""
        p = self._process
        if p is not None and p.poll() is not None:
            return
        self.stopped = why
        if p is None:
            return
        for sig, wait in ((signal.SIGINT, self.grace_s), (signal.SIGTERM, 5.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(p.pid, sig)
            except ProcessLookupError:
                return
            end = time.monotonic() + wait
            while time.monotonic() < end:
                if p.poll() is not None:
                    return
                time.sleep(0.05)
