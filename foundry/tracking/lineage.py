"""What links a run to the state of the project: commit, uncommitted changes of its code, `dvc.lock`, experiment and
flow run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from foundry.config import read_yaml
from foundry.tracking.experiment import experiment_name
from foundry.tracking.names import COMMIT, DIRTY, EXPERIMENT, FLOW_RUN, LOCK_HASH

OUTS = ("outs", "metrics", "plots")


def lineage_tags(root: str | Path = ".") -> dict[str, str]:
    """The tags of the project at `root`. Without git, those that come from git are missing."""
    root = Path(root)
    tags = {}
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        tags[COMMIT] = commit
        changed = _git(root, "status", "--porcelain", *_code(root))
        if changed is not None:  # None: git did not answer in time
            tags[DIRTY] = "true" if changed else "false"
    lock = root / "dvc.lock"
    if lock.exists():
        tags[LOCK_HASH] = hashlib.md5(lock.read_bytes(), usedforsecurity=False).hexdigest()
    flow_run = os.environ.get("FOUNDRY_FLOW_RUN_ID") or os.environ.get("PREFECT__FLOW_RUN_ID")
    tags |= {k: v for k, v in ((EXPERIMENT, experiment_name()), (FLOW_RUN, flow_run)) if v}
    return tags


def _code(root: Path) -> list[str]:
    """Arguments of `git status` that select what a commit has to contain for the run to be built again from it.

    That is dvc.yaml and the dependencies of its stages, new files included. Parameters, `dvc.lock` and reports are not
    part of it: the chain of custody of an export contains all of its parameters, and the others are results. Without a
    dvc.yaml, every file that git tracks counts.
    """
    graph = root / "dvc.yaml"
    if not graph.is_file():
        return ["--untracked-files=no"]
    stages = read_yaml(graph)["stages"].values()
    made = {out for s in stages for out in outs_of(s)}
    read = sorted({d for s in stages for d in s.get("deps", [])} - made)
    return ["--untracked-files=all", "--", "dvc.yaml", *(f":(literal){path}" for path in read)]


def outs_of(stage: dict[str, Any]) -> Iterator[str]:
    """The paths of the outs, metrics and plots of a stage of dvc.yaml."""
    for kind in OUTS:
        yield from (o if isinstance(o, str) else next(iter(o)) for o in stage.get(kind, []))


def _git(root: Path, *args: str) -> str | None:
    """The output of git; None if it fails, is not installed, or takes too long."""
    try:
        # Git must not refresh its index here: a training that is killed meanwhile would leave `index.lock`, which
        # blocks the next commit.
        env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(["git", *args], cwd=root, env=env, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
