"""`foundry sync`: delivers metrics that could not reach MLflow during training, and closes the runs of trainers that
have died.
"""

from __future__ import annotations

from pathlib import Path

from foundry.config import TrackingError
from foundry.tracking.delivery import deliver_folder
from foundry.tracking.settings import reason
from foundry.utils.log import get_logger


def sync(state: Path, uri: str | None = None) -> int:
    """Delivers every run under `state/train`; returns the number of points that were copied.

    A run whose trainer is alive is delivered and left open. That of a dead trainer is closed with the status that the
    trainer wrote, or as KILLED if it wrote none.

    Args:
        state: `.foundry`.
        uri: deliver there instead of to each run's own address.

    Raises:
        TrackingError: if an address does not answer; runs of other addresses are delivered.
    """
    log, problems, total = get_logger(), [], 0
    for path in sorted((state / "train").glob("*/run.json")):
        try:
            done = deliver_folder(path.parent, uri)
        except Exception as e:  # MLflow raises its own errors and those of the network; each becomes one line
            problems.append(f"run {path.parent.name}: {reason(e)}")
            continue
        total += done.points
        log.info("run %s: %d points delivered, %s", path.parent.name, done.points, done.status or "still running")
    if problems:
        listed = "\n  - ".join(problems)
        raise TrackingError(
            f"not everything was delivered; nothing is lost, run `foundry sync` again later:\n  - {listed}"
        )
    return total
