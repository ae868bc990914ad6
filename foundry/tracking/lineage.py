"""What links a run to the world around it: commit, whether the tree was dirty, the lock of the graph, experiment and flow run."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path


def lineage_tags(root: str | Path = ".") -> dict[str, str]:
    """Tags of the project at `root`; without git those of git are left out."""
    root = Path(root)
    tags = {}
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        tags["git.dirty"] = "true" if _git(root, "status", "--porcelain", "--untracked-files=no") else "false"
    lock = root / "dvc.lock"
    if lock.exists():
        tags["dvc.lock.md5"] = hashlib.md5(lock.read_bytes(), usedforsecurity=False).hexdigest()
    for tag, names in (
        ("dvc.exp_name", ("DVC_EXP_NAME",)),
        ("prefect.flow_run_id", ("FOUNDRY_FLOW_RUN_ID", "PREFECT__FLOW_RUN_ID")),
    ):
        if value := next((os.environ[n] for n in names if os.environ.get(n)), None):
            tags[tag] = value
    return tags


def _git(root: Path, *args: str) -> str | None:
    try:
        done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
