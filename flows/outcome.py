"""How a run of a flow fails: with a message, and with a traceback only where somebody has to look at code."""

import functools
from collections.abc import Callable
from typing import Any

from prefect.states import Failed

from foundry.config import FoundryError


class RunFailed(FoundryError, RuntimeError):
    """A stage, a trial or a command failed; the message is its own."""


def fail_with_message(flow: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a flow's function: a `FoundryError` ends the run as `Failed` with its message.

    Any other exception is a bug and keeps its traceback.
    """

    @functools.wraps(flow)
    def inner(*args: Any, **kw: Any) -> Any:
        try:
            return flow(*args, **kw)
        except FoundryError as e:
            return Failed(message=str(e), data=e)

    return inner
