"""Runs that belong together: a sweep is one run in MLflow, and the runs of its trials are nested in it."""

from __future__ import annotations

from typing import Any

from foundry.tracking.names import EXPERIMENT, FINGERPRINT, NOTE, PARENT, STAGE, SWEEP
from foundry.tracking.params import PARAMS_PER_REQUEST, flatten
from foundry.tracking.search import first_run
from foundry.tracking.settings import connect, experiment_id
from foundry.tracking.source import source_tags


def experiment_of(uri: str, run_id: str) -> str:
    """The id of the experiment that a run belongs to."""
    return connect(uri).get_run(run_id).info.experiment_id


def begin_parent(uri: str, experiment: str, name: str, params: dict[str, Any], note: str) -> str:
    """Creates the run of a sweep, or finds it when the sweep is retried; returns its id.

    Args:
        name: of the sweep.
        params: of the search: its method and space.
        note: the run's description.
    """
    from mlflow.entities import Param

    client = connect(uri)
    where = experiment_id(client, uri, experiment)
    if found := first_run(client, where, SWEEP, name):
        client.update_run(found.info.run_id, status="RUNNING")
        return found.info.run_id
    tags = {**source_tags(), NOTE: note, STAGE: "sweep", SWEEP: name}
    run_id = client.create_run(where, run_name=f"sweep {name}", tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(k, v) for k, v in flatten(params).items()][:PARAMS_PER_REQUEST])
    return run_id


def nest(uri: str, experiment: str, fingerprint: str, parent: str, trial: str) -> str | None:
    """Nests the run of a training in a sweep's run, also one that an earlier sweep trained and DVC restored.

    Args:
        parent: id of the sweep's run.
        trial: name of the trial.

    Returns:
        The id of the training's run; None if MLflow has none.
    """
    client = connect(uri)
    run = first_run(client, experiment_id(client, uri, experiment), FINGERPRINT, fingerprint)
    if run is None:
        return None
    client.set_tag(run.info.run_id, PARENT, parent)
    client.set_tag(run.info.run_id, EXPERIMENT, trial)
    return run.info.run_id


def end_parent(
    uri: str, run_id: str, metrics: dict[str, float], tags: dict[str, str], status: str = "FINISHED"
) -> None:
    """Ends the run of a sweep with its results."""
    client = connect(uri)
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    client.set_terminated(run_id, status)
