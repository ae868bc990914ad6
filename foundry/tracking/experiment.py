"""The DVC experiment that this process belongs to, as tags of its MLflow run. DVC tells a stage by its environment."""

from __future__ import annotations

import os

NAME, BASELINE, PARENT = "dvc.exp_name", "dvc.exp_baseline_rev", "mlflow.parentRunId"


def experiment_name() -> str | None:
    """Name of the experiment under `dvc exp run`; None under `dvc repro`."""
    return os.environ.get("DVC_EXP_NAME") or None


def experiment_tags() -> dict[str, str]:
    """Name and the commit that the experiment began from, and the sweep's run that this one is nested in; nothing outside an experiment."""
    env = os.environ
    pairs = (
        (NAME, experiment_name()),
        (BASELINE, env.get("DVC_EXP_BASELINE_REV")),
        (PARENT, env.get("FOUNDRY_PARENT_RUN_ID")),
    )
    return {k: v for k, v in pairs if v}
