"""The DVC experiment that this process belongs to, as tags of its MLflow run. DVC tells a stage by its environment."""

from __future__ import annotations

import os

NAME, BASELINE = "dvc.exp_name", "dvc.exp_baseline_rev"


def experiment_name() -> str | None:
    """Name of the experiment under `dvc exp run`; None under `dvc repro`."""
    return os.environ.get("DVC_EXP_NAME") or None


def experiment_tags() -> dict[str, str]:
    """Name and the commit that the experiment began from; nothing outside an experiment."""
    pairs = ((NAME, experiment_name()), (BASELINE, os.environ.get("DVC_EXP_BASELINE_REV")))
    return {k: v for k, v in pairs if v}
