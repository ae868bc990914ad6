"""How a run ends when it is not well: with a message, and without a traceback where nobody has to look at code."""

import functools
from collections.abc import Callable
from typing import Any

from prefect.states import Failed

from foundry.config import FoundryError


class RunFailed(FoundryError, RuntimeError):
    """A stage, a trial or a command did not end well; the message has its own words."""


def reported(work: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a flow's function: a user's mistake ends the run as `Failed` with its message. Everything else is a bug and keeps its traceback."""

    @functools.wraps(work)
    def inner(*args: Any, **kw: Any) -> Any:
        try:
            return work(*args, **kw)
        except FoundryError as e:
            return Failed(message=str(e), data=e)

    return inner
