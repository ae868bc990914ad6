"""The DVC experiment that this process belongs to, as tags of its MLflow run.

DVC passes it to a stage in environment variables.
"""

from __future__ import annotations

import os

from foundry.tracking.names import BASELINE, EXPERIMENT, PARENT


def experiment_name() -> str | None:
    """The name of the experiment under `dvc exp run`; None under `dvc repro`."""
    return os.environ.get("DVC_EXP_NAME") or None


def experiment_tags() -> dict[str, str]:
    """The experiment's name, the commit that it started from, and the sweep's run that this run is nested in, where
    there are such.
    """
    pairs = (
        (EXPERIMENT, experiment_name()),
        (BASELINE, os.environ.get("DVC_EXP_BASELINE_REV")),
        (PARENT, os.environ.get("FOUNDRY_PARENT_RUN_ID")),
    )
    return {k: v for k, v in pairs if v}
