"""A plugin of pytest that writes a line of JSON when a test begins, and one when its outcome is known."""

from __future__ import annotations

import json
import os

from benchmarks.gpu.child import TOLD
from benchmarks.gpu.suite import SEEN


def _write(record: dict) -> None:
    with open(os.environ[SEEN], "a") as f:
        f.write(json.dumps(record) + "\n")


def pytest_runtest_logstart(nodeid: str, location: tuple) -> None:
    _write({"test": nodeid, "result": "begun"})


class _Seconds:
    total = 0.0


def pytest_runtest_logreport(report) -> None:
    """The call decides; a skip or a failure of the set-up or the end does, too."""
    if report.when == "setup":
        _Seconds.total = 0.0
    _Seconds.total += report.duration
    if report.when == "call" or not report.passed:
        message = ""
        if report.skipped and isinstance(report.longrepr, tuple):
            message = report.longrepr[2]
        elif report.failed:
            message = str(report.longrepr)[-TOLD:]
        seconds = round(_Seconds.total, 3)
        _write({"test": report.nodeid, "result": report.outcome, "seconds": seconds, "message": message})
