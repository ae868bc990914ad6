"""One DVC stage as a well-behaved child: its own session, streamed lines, a time limit, a stop that lets it save.

DVC survives SIGINT to the whole group cleanly; SIGTERM and SIGKILL follow if that has no effect. When this process
dies, the kernel ends the child, and the stage dies with it: no orphan trains on.
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
from typing import Literal

from flows.settings import environment
from foundry.config.pipelines import read_stages
from foundry.utils.dvc_files import repair_dvc

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
# What DVC prints, for every stage, to a user who would run git by hand.
CHATTER = re.compile(
    r"^(To track the changes with git|\s*git add |To enable auto staging|\s*dvc config core.autostage|Use `dvc push`)"
)
EXITED = re.compile(r"exited with (-?\d+)")
PROGRESS = re.compile(r"(\d{1,3})%\|")
Action = Literal["ran", "restored", "up-to-date"]  # what DVC did with a stage; restored: from its run cache


class StageStopped(RuntimeError):
    """The stage was stopped, by its time limit or because the run was cancelled. A retry would undo that."""


class StageFailed(RuntimeError):
    """DVC ended with an error; the message has the stage's last lines.

    Attributes:
        retryable: whether a retry may help: the stage was killed, or asked for it (exit code 75). It does not help
            against a mistake in data or parameters.
    """

    def __init__(self, message: str, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


def retryable(lines: list[str]) -> bool:
    """Whether the stage's exit code, which DVC prints in its last lines, is 75 (try later) or that of a signal."""
    codes = [int(m[1]) for line in lines[-20:] if (m := EXITED.search(line))]
    return bool(codes) and (codes[-1] == os.EX_TEMPFAIL or codes[-1] < 0 or codes[-1] > 128)


def die_with_parent() -> None:
    """For `preexec_fn`: the kernel ends the child when this process dies."""
    if _LIBC is not None:
        # PR_SET_PDEATHSIG. Not SIGINT: while a stage runs, DVC itself does not react to it.
        _LIBC.prctl(1, signal.SIGTERM, 0, 0, 0)


def end_with_worker() -> None:
    """In a process that Prefect's worker started: it ends as by SIGTERM when the worker dies.

    Without this, such a run continues until it next writes to the worker's pipe, out of reach of the cancel button.
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
class StageProcess:
    """The child `dvc repro --single-item STAGE`.

    Args:
        timeout_s: time limit in seconds; None for none.
        grace_s: seconds that a stage has to save after SIGINT.
        cores: CPU cores that it may use; empty for all.
    """

    stage: str
    root: Path
    timeout_s: float | None = None
    grace_s: float = 30.0
    force: bool = False
    cores: frozenset[int] = frozenset()
    extra_env: dict[str, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    stopped: str | None = None  # why
    _process: subprocess.Popen | None = None

    def execute(self, on_line: Callable[[str], None]) -> Action:
        """Starts the child and waits until it ends; returns what DVC did.

        Raises:
            StageFailed: if DVC ended with an error.
            StageStopped: if `stop` was called, also before the start.
        """
        for line in repair_dvc(self.root):
            on_line(line)
        if self.stopped:
            raise self._was_stopped()
        options = ["--single-item", read_stages(self.root)[self.stage].address, *["--force"] * self.force]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", *options],
            cwd=self.root,
            env={**environment(self.root), "SHELL": "/bin/sh", **self.extra_env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            bufsize=1,
            start_new_session=True,
            preexec_fn=self._prepare,
        )
        if self.stopped:  # while the child was started
            self.stop(self.stopped)
        timer = threading.Timer(self.timeout_s, self.stop, ("its time limit was reached",)) if self.timeout_s else None
        if timer:
            timer.daemon = True
            timer.start()
        try:
            for raw in self._process.stdout:
                line = raw.rstrip().rsplit("\r", 1)[-1].rstrip()  # the last state of a progress bar
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
            message = f"stage {self.stage} failed (dvc ended with {code}):\n" + "\n".join(self.lines[-20:])
            raise StageFailed(message, retryable(self.lines) or code < 0)
        text = "\n".join(self.lines)
        if "is cached - skipping run" in text:
            return "restored"
        return "up-to-date" if "didn't change, skipping" in text else "ran"

    def _was_stopped(self) -> StageStopped:
        return StageStopped(f"stage {self.stage}: {self.stopped}; the next run resumes, a training from its checkpoint")

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
