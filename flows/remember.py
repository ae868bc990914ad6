"""Puts stages that were built into DVC's run cache where DVC does not do it itself.

DVC 3.67 restores a stage that has a report in git (`cache: false`) from the run cache but never saves it there
(`no_cache_outs` in `Stage.run`): runs in worktrees would build it again each time.

    python -m flows.remember [STAGE ...]      in the folder of dvc.yaml; default: each built stage that DVC leaves out
"""

import sys
from contextlib import nullcontext
from pathlib import Path

from foundry.config.pipelines import read_stages


def left_out(root: Path, stage: str) -> bool:
    """Whether DVC leaves a stage out of the run cache: one of its `outs` (not metrics or plots) has `cache: false`."""
    outs = read_stages(root)[stage].entry.get("outs", [])
    return any(isinstance(o, dict) and next(iter(o.values())).get("cache") is False for o in outs)


def main() -> None:
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    names = sys.argv[1:]
    ours = {stage.address: name for name, stage in read_stages(Path()).items()}  # there may be other files of stages
    try:
        with Repo(".") as repo, nullcontext() if names else repo.lock:
            for stage in repo.index.stages:
                name = ours.get(stage.addressing)
                if name and (name in names or (not names and left_out(Path(), name) and not stage.changed())):
                    repo.stage_cache.save(stage)
    except DvcException as e:
        if names:
            raise
        # The build itself is done: these stages would only run again when the project returns to this state.
        print(f"DVC's run cache did not take every stage: {e}", file=sys.stderr)


if __name__ == "__main__":
    main()
