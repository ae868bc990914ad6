"""`foundry sync`: delivers what could not reach MLflow while training, and closes the runs of dead trainers."""

from __future__ import annotations

import fcntl
from dataclasses import replace
from pathlib import Path

from foundry.config import TrackingError
from foundry.tracking.run import Delivery, RunSpec
from foundry.utils.files import read_json, write_text
from foundry.utils.log import get_logger


def sync(state: Path, uri: str | None = None) -> int:
    """Delivers every run under `state/train`; returns the number of points that were copied.

    A run whose trainer lives is delivered and left open. A dead one is closed: with the status that it wrote, KILLED when it could write none.

    Args:
        state: `.foundry`.
        uri: deliver there instead of to each run's own address.

    Raises:
        TrackingError: if an address does not answer; the runs that could be delivered are.
    """
    log, problems, total = get_logger(), [], 0
    for path in sorted((state / "train").glob("*/run.json")):
        folder = path.parent
        spec = RunSpec(**read_json(path, "a run that was tracked"))
        delivery = Delivery(folder, replace(spec, uri=uri) if uri else spec)
        try:
            n = delivery.deliver()
            status = _status(folder)
            if status:
                delivery.end(status)
                write_text(folder / "delivered", status)
        except Exception as e:  # MLflow raises its own and every network error; each becomes one line of ours
            problems.append(f"run {spec.fingerprint} to {delivery.spec.uri}: {str(e).splitlines()[0][:200]}")
            continue
        total += n
        log.info(
            "run %s: %d points delivered to %s, %s", spec.fingerprint, n, delivery.spec.uri, status or "still running"
        )
    if problems:
        raise TrackingError(
            "not everything was delivered; nothing is lost, run `foundry sync` again later:\n  - "
            + "\n  - ".join(problems)
        )
    return total


def _status(folder: Path) -> str | None:
    """How the run ended; None while its trainer lives."""
    lock = folder / "lock"
    if lock.exists():
        with open(lock, "a") as f:
            try:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return None
    status = folder / "status"
    return status.read_text() if status.exists() else "KILLED"
