"""The user's own files that parameters name: below the folder that the stage depends on, so that DVC watches them.

That the path of a parameter is below its folder is checked with the parameters (`foundry.config.section.below`). DVC
hashes the target of a link to a file, and the folder itself may be a link. DVC does not enter a linked folder inside
it, so that changes there would not be noticed (seen with DVC 3.67).
"""

from __future__ import annotations

import glob
from collections.abc import Iterable
from pathlib import Path

from foundry.config import ConfigError


def find_inputs(pattern: str, root: Path, key: str) -> list[Path]:
    """The files that a glob relative to `root` matches, sorted; hidden ones only where the pattern names the dot.

    Raises:
        ConfigError: naming the parameter `key`, if nothing matches, or if a match is in a linked folder.
    """
    found = sorted(p for p in (root / m for m in glob.glob(pattern, root_dir=root, recursive=True)) if p.is_file())
    if not found:
        raise ConfigError(f"{key}: {pattern!r} matches no file below {root.resolve()}")
    refuse_linked(found, root, key)
    return found


def refuse_linked(paths: Iterable[Path], root: Path, key: str) -> None:
    """Refuses paths in a linked folder below `root`, which DVC does not watch.

    Raises:
        ConfigError: naming the first such path and the parameter `key`.
    """
    for path in paths:
        for folder in list(path.relative_to(root).parents)[:-2]:
            if (root / folder).is_symlink():
                raise ConfigError(
                    f"{key}: {path.relative_to(root)} is behind the linked folder {folder} → "
                    f"{(root / folder).readlink()}. DVC does not look into a linked folder, so that a change there "
                    "would not be noticed: copy the folder, link its files one by one, or make "
                    f"{folder.parts[0]}/ itself the link"
                )
