"""Puts stages that were built into DVC's run cache, as DVC does itself unless a stage has a report that git keeps.

DVC 3.67 restores such a stage from the run cache but never saves it there (`no_cache_outs` in `Stage.run`): runs in worktrees would build it again and again.

    python -m flows.remember [STAGE ...]      in the folder of dvc.yaml; without names every stage that is built and that DVC leaves out
"""

import sys
from contextlib import nullcontext
from pathlib import Path

from foundry.config import read_yaml


def left_out(root: Path, stage: str) -> bool:
    """Whether DVC leaves a stage out of the run cache: an out, neither metric nor plot, with `cache: false`."""
    outs = read_yaml(root / "dvc.yaml")["stages"][stage].get("outs", [])
    return any(isinstance(o, dict) and next(iter(o.values())).get("cache") is False for o in outs)


def main() -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    names = sys.argv[1:]
    ours = read_yaml(Path("dvc.yaml"))["stages"]  # the project may have other files of stages below
    try:
        with Repo(".") as repo, nullcontext() if names else repo.lock:
            for stage in repo.index.stages:
                name = stage.addressing
                if name in names or (not names and name in ours and left_out(Path(), name) and not stage.changed()):
                    repo.stage_cache.save(stage)
    except DvcException as e:
        if names:
            raise
        # The build itself is done: only a later return to it would run these stages again.
        print(f"the run cache did not take every stage: {e}", file=sys.stderr)


if __name__ == "__main__":
    main()
