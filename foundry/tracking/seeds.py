"""Runs that differ only in their seed, as MLflow has them: the noise in which a small improvement may be lost."""

from __future__ import annotations

from foundry.config import TrackingError
from foundry.tracking.names import TEST_SCORE
from foundry.tracking.search import every_run
from foundry.tracking.settings import connect, reason


def seed_scores(uri: str, experiment: str) -> list[float]:
    """Test bits per byte of runs of one recipe: the largest group of runs that share every parameter except `seed`.

    Returns:
        One value per seed: that of its newest run.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        runs = list(every_run(client, found.experiment_id)) if found else []
    except Exception as e:  # MLflow raises its own errors, SQLAlchemy's and those of the network
        raise TrackingError(f"MLflow at {uri} did not answer: {reason(e)}") from e
    groups: dict[tuple[tuple[str, str], ...], dict[str, float]] = {}  # {other parameters: {seed: score}}
    for run in runs:  # newest first
        params = dict(run.data.params)
        seed = params.pop("seed", None)
        if seed is not None and TEST_SCORE in run.data.metrics:
            same = tuple(sorted((k, v) for k, v in params.items() if not k.startswith("runtime.")))
            groups.setdefault(same, {}).setdefault(seed, run.data.metrics[TEST_SCORE])
    return list(max(groups.values(), key=len, default={}).values())
