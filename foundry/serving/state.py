"""What the parts of the application share: of all requests (`Common`), and of one (`Call`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import ParamSpec, TypeVar

from starlette.types import Scope

from foundry.serving.inbox import Post
from foundry.serving.interface import Server
from foundry.serving.keys import Key
from foundry.serving.version import Version

THREADS = 2  # that parse, tokenise and write large answers; the engine has its own
P = ParamSpec("P")
R = TypeVar("R")


class Common:
    """What all requests share.

    Attributes:
        post: brings events of the engine to the event loop; made when the first request runs on it.
    """

    def __init__(self, server: Server) -> None:
        self.server = server
        self._pool = ThreadPoolExecutor(THREADS, "serving")

    @cached_property
    def post(self) -> Post:
        return Post(asyncio.get_running_loop())

    async def off_loop(self, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of a function that runs in a thread of the pool."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, partial(work, *args, **kwargs))


@dataclass
class Call:
    """One HTTP request.

    Attributes:
        key: that the client presented; None without keys.
        arrived: value of `time.monotonic()`.
        started: Unix time in seconds.
        headers: that the response gets.
        status: of the response, for the log.
        notes: what the line of the log says besides; never text of a prompt or an answer.
    """

    request_id: str
    key: Key | None = None
    arrived: float = field(default_factory=time.monotonic)
    started: float = field(default_factory=time.time)
    headers: dict[str, str] = field(default_factory=dict)
    status: int = 0
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, scope: Scope) -> Call:
        """That of an ASGI scope."""
        call: Call = scope["foundry.call"]
        return call

    def answered_by(self, version: Version) -> None:
        """Names the weights in the response."""
        self.headers["X-Foundry-Model"] = version.facts.weights_sha256

    @property
    def seconds(self) -> float:
        """Since the arrival."""
        return time.monotonic() - self.arrived
