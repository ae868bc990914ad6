"""Runs that belong together: a sweep is one run in MLflow, and its trials are nested in it."""

from __future__ import annotations

from typing import Any

from foundry.tracking.description import NOTE
from foundry.tracking.experiment import NAME, PARENT
from foundry.tracking.names import FINGERPRINT, STAGE, SWEEP
from foundry.tracking.params import flatten
from foundry.tracking.settings import connect, experiment_id
from foundry.tracking.source import source_tags


def experiment_of(uri: str, run_id: str) -> str:
    """The experiment's id of a run."""
    return connect(uri).get_run(run_id).info.experiment_id


def begin_parent(uri: str, experiment: str, name: str, params: dict[str, Any], note: str) -> str:
    """Makes the run that the trials are nested in, or finds it when the sweep is tried again; returns its id."""
    from mlflow.entities import Param

    client = connect(uri)
    where = experiment_id(client, uri, experiment)
    if found := client.search_runs([where], f"tags.`{SWEEP}` = '{name}'", max_results=1):
        client.update_run(found[0].info.run_id, status="RUNNING")
        return found[0].info.run_id
    tags = {**source_tags(), NOTE: note, STAGE: "sweep", SWEEP: name}
    run_id = client.create_run(where, run_name=f"sweep {name}", tags=tags).info.run_id
    client.log_batch(run_id, params=[Param(k, v) for k, v in flatten(params).items()][:100])
    return run_id


def nest(uri: str, experiment: str, fingerprint: str, parent: str, trial: str) -> str | None:
    """Puts a training's run under a parent, also one that an earlier sweep made and DVC restored; None if MLflow has none."""
    client = connect(uri)
    where = experiment_id(client, uri, experiment)
    runs = client.search_runs([where], f"tags.`{FINGERPRINT}` = '{fingerprint}'", max_results=1)
    if not runs:
        return None
    run_id = runs[0].info.run_id
    client.set_tag(run_id, PARENT, parent)
    client.set_tag(run_id, NAME, trial)
    return run_id


def end_parent(
    uri: str, run_id: str, metrics: dict[str, float], tags: dict[str, str], status: str = "FINISHED"
) -> None:
    client = connect(uri)
    for key, value in metrics.items():
        client.log_metric(run_id, key, value)
    for key, value in tags.items():
        client.set_tag(run_id, key, value)
    client.set_terminated(run_id, status)
