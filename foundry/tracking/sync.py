"""`foundry sync`: delivers what could not reach MLflow while training, and closes the runs of dead trainers."""

from __future__ import annotations

from pathlib import Path

from foundry.config import TrackingError
from foundry.tracking.delivery import deliver_folder
from foundry.tracking.settings import reason
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
        try:
            n, status = deliver_folder(path.parent, uri)
        except Exception as e:  # MLflow raises its own and every network error; each becomes one line of ours
            problems.append(f"run {path.parent.name}: {reason(e)}")
            continue
        total += n
        log.info("run %s: %d points delivered, %s", path.parent.name, n, status or "still running")
    if problems:
        raise TrackingError(
            "not everything was delivered; nothing is lost, run `foundry sync` again later:\n  - "
            + "\n  - ".join(problems)
        )
    return total
