"""The process of a side: it answers the calls of a part, one line of JSON each.

A side has a process of its own, so that a crash of CUDA, or a kernel that never ends, costs only that side. It is an
object of a class in one of this package's modules; its methods take and return what JSON can say. What it prints goes
to its log, whose end is reported when it fails.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TOLD = 1500  # characters of a traceback or log


class SideFailed(Exception):
    """Why a side has no answer."""


class Child:
    """A side, seen from the part that asks it.

    Args:
        side: `module:Class` of this package.
        options: arguments of the class.
        folder: for its log.
    """

    def __init__(self, side: str, options: dict[str, Any], folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name = f"{side.rpartition(':')[2]}-{len(list(folder.glob('*.log')))}"
        self.log = folder / f"{self.name}.log"
        command = [sys.executable, "-m", "benchmarks.gpu.child", side, json.dumps(options)]
        with self.log.open("w") as log:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT
            )
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # its end

    def begin(self, method: str, /, **arguments: Any) -> None:
        """Calls a method without waiting for it.

        Raises:
            SideFailed: if the process has ended.
        """
        try:
            self._process.stdin.write(json.dumps({"method": method, "arguments": arguments}) + "\n")
            self._process.stdin.flush()
        except OSError:
            raise SideFailed(self._end()) from None

    def wait(self, seconds: float) -> Any:
        """The answer of the call that was begun.

        Raises:
            SideFailed: if it is an error, the process ends, or so many seconds pass; the process is then killed.
        """
        try:
            line = self._answers.get(timeout=max(0.1, seconds))
        except queue.Empty:
            self._process.kill()
            raise SideFailed(f"no answer within {max(0.0, seconds):.0f} s; its log ends with: {self._tail()}") from None
        if not line:
            raise SideFailed(self._end())
        answer = json.loads(line)
        if "problem" in answer:
            raise SideFailed(answer["problem"])
        return answer["value"]

    def ask(self, method: str, timeout: float, /, **arguments: Any) -> Any:
        """Calls a method; errors as for `wait`."""
        self.begin(method, **arguments)
        return self.wait(timeout)

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self._process.stdin.close()

    def _end(self) -> str:
        code = self._process.wait()
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return f"its process ended {how}; its log ends with: {self._tail()}"

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-TOLD:].strip()


def serve(side: str, options: dict[str, Any]) -> None:
    """The process of a side: answers every line of standard input until its end."""
    from foundry.utils.process import die_with_parent

    die_with_parent(signal.SIGKILL)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    module, _, name = side.partition(":")
    made = None
    for line in sys.stdin:
        call = json.loads(line)
        try:
            if made is None:
                made = getattr(importlib.import_module(f"benchmarks.gpu.{module}"), name)(**options)
            answer = {"value": getattr(made, call["method"])(**call["arguments"])}
        except ImportError as e:
            answer = {"problem": f"{e.name or 'a module'} is not installed: {e}"}
        except Exception:
            answer = {"problem": traceback.format_exc()[-TOLD:]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


class Clock:
    """The time of a part: what does not fit into it is not begun."""

    def __init__(self, seconds: float) -> None:
        self._begin = time.monotonic()
        self._end = self._begin + seconds

    @property
    def left(self) -> float:
        return self._end - time.monotonic()

    @property
    def spent(self) -> float:
        return time.monotonic() - self._begin


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
