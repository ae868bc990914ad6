"""Shares what was built here: `dvc push --run-cache`, and the files that the run cache names.

    python -m scripts.push      (make push)

DVC 3.67 sends the records of the run cache, but only those of their outputs that the current dvc.lock names, and never
reports that git keeps (`cache: false`). Without them a colleague's `dvc repro --pull` finds the record and trains all
the same. This sends them as well; what the remote already has is not sent again.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def main() -> None:
    from dvc.exceptions import DvcException

    try:
        share()
    except DvcException as e:
        raise SystemExit(f"error: {e}") from None


def share() -> None:
    remember()
    done = subprocess.run([sys.executable, "-m", "dvc", "push", "--run-cache"])
    if done.returncode:
        raise SystemExit(done.returncode)
    print(f"{push_runs()} more files of former runs pushed")


def remember() -> None:
    """Puts what is built now into the run cache: DVC does not do it for a stage with a report that git keeps."""
    from dvc.repo import Repo

    with Repo(".") as repo, repo.lock:
        for stage in repo.index.stages:
            if not stage.changed():
                repo.stage_cache.save(stage)


def push_runs() -> int:
    """Pushes the outputs of every run in the run cache; returns how many files the remote did not have."""
    from dvc.repo import Repo

    with Repo(".") as repo:
        runs = [(p.parent.name, p.name) for p in Path(repo.stage_cache.cache_dir).glob("*/*/*") if p.is_file()]
        pushed = 0
        for odb, objects in repo.stage_cache.get_used_objs(runs).items():
            there = {o for o in objects if repo.cache.local.exists(o.value) or repo.cache.legacy.exists(o.value)}
            result = repo.cloud.push(there, odb=odb)
            if result.failed:
                raise SystemExit(f"error: {len(result.failed)} files could not be pushed")
            pushed += len(result.transferred)
        return pushed


if __name__ == "__main__":
    main()
