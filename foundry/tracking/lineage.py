"""What links a run to the state of the project: commit, uncommitted changes of its code, `dvc.lock`, experiment and
flow run.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from foundry.config.pipelines import PIPELINES, read_stages
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

    That is the pipelines' files and the dependencies of their stages, new files included. Parameters, DVC's locks and
    reports are not part of it: the chain of custody of an export contains all of its parameters, and the others are
    results. Without a dvc.yaml, every file that git tracks counts.
    """
    if not (root / PIPELINES["all"]).is_file():
        return ["--untracked-files=no"]
    stages = read_stages(root).values()
    made = {out for s in stages for out in s.outs}
    files = {PIPELINES[s.pipeline]: None for s in stages}
    read = sorted({d for s in stages for d in s.entry.get("deps", [])} - made)
    return ["--untracked-files=all", "--", *files, *(f":(literal){path}" for path in read)]


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
