"""Runs that differ in their seed alone, as MLflow knows them: the noise in which a small improvement may vanish."""

from __future__ import annotations

from foundry.config import TrackingError
from foundry.tracking.search import every_run
from foundry.tracking.settings import connect

METRIC = "test_bits_per_byte"


def seed_scores(uri: str, experiment: str) -> list[float]:
    """Test bits per byte of the largest group of runs that share every parameter but `seed`; one value a seed, the newest.

    Raises:
        TrackingError: if MLflow cannot be reached.
    """
    try:
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        runs = list(every_run(client, found.experiment_id)) if found else []
    except Exception as e:  # MLflow raises its own, SQLAlchemy's and every network error
        raise TrackingError(
            f"MLflow at {uri} did not answer: {(str(e).splitlines() or [type(e).__name__])[0][:300]}"
        ) from e
    groups: dict[tuple, dict[str, float]] = {}
    for run in runs:  # the newest first
        params = dict(run.data.params)
        seed = params.pop("seed", None)
        if seed is not None and METRIC in run.data.metrics:
            same = tuple(sorted((k, v) for k, v in params.items() if not k.startswith("runtime.")))
            groups.setdefault(same, {}).setdefault(seed, run.data.metrics[METRIC])
    return list(max(groups.values(), key=len, default={}).values())
