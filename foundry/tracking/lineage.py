"""What links a run to the world around it: commit, whether its code was changed, the lock of the graph, experiment and flow run."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from foundry.config import read_yaml

OUTS = ("outs", "metrics", "plots")


def lineage_tags(root: str | Path = ".") -> dict[str, str]:
    """Tags of the project at `root`; without git those of git are left out."""
    root = Path(root)
    tags = {}
    commit = _git(root, "rev-parse", "HEAD")
    if commit:
        tags["mlflow.source.git.commit"] = commit
        changed = _git(root, "status", "--porcelain", *_code(root))
        if changed is not None:  # git did not answer in time
            tags["git.dirty"] = "true" if changed else "false"
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


def _code(root: Path) -> list[str]:
    """Arguments of `git status` that ask for what a commit has to contain for the run to be built again from it.

    That is the graph and what its stages depend on, new files included. Parameters, `dvc.lock` and reports are not: the chain of an export has its
    parameters whole, and the others are results. Without a graph everything that git knows counts.
    """
    graph = root / "dvc.yaml"
    if not graph.is_file():
        return ["--untracked-files=no"]
    stages = read_yaml(graph)["stages"].values()
    made = {o if isinstance(o, str) else next(iter(o)) for s in stages for k in OUTS for o in s.get(k, [])}
    read = sorted({d for s in stages for d in s.get("deps", [])} - made)
    return ["--untracked-files=all", "--", "dvc.yaml", *(f":(literal){path}" for path in read)]


def _git(root: Path, *args: str) -> str | None:
    try:
        # Without refreshing git's index: a training that is killed then would leave `index.lock`, which stops the user's next commit.
        env = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
        done = subprocess.run(["git", *args], cwd=root, env=env, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
