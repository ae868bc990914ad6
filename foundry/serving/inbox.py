"""From the engine's thread to the event loop: events of many answers, with one wake-up for all that are waiting.

The engine never waits for a reader: what is not read yet is kept, and joined when it is read. It is bounded by what a
request may generate, and the connection of a client that does not read is closed (`foundry.serving.connection`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from foundry.inference.request import Event, Listener


class Inbox:
    """The events of one request for text, numbered by answer."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._events: deque[tuple[int, Event]] = deque()
        self._awake = asyncio.Event()

    def listener(self, answer: int) -> Listener:
        """What an engine calls with the events of an answer, in any thread."""

        def listen(event: Event) -> None:
            self._events.append((answer, event))
            self._post.wake(self)

        return listen

    def interrupt(self) -> None:
        """Ends a wait; on the loop."""
        self._awake.set()

    async def wait(self) -> list[tuple[int, Event]]:
        """Waits until something came, and returns all of it; nothing after `interrupt`."""
        await self._awake.wait()
        self._awake.clear()
        found = []
        while self._events:
            found.append(self._events.popleft())
        return found


class Post:
    """Wakes inboxes of one event loop. A step of an engine has events for a whole batch: one wake-up is enough."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._waiting: deque[Inbox] = deque()
        self._called = False

    def inbox(self) -> Inbox:
        return Inbox(self)

    def wake(self, inbox: Inbox) -> None:
        """In any thread."""
        self._waiting.append(inbox)
        if not self._called:
            self._called = True
            self._soon(self._deliver)

    def _soon(self, call: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(call)
        except RuntimeError:  # the loop is closed: nobody waits any more
            self._waiting.clear()

    def _deliver(self) -> None:
        self._called = False  # before reading: what is appended from now on calls again
        while self._waiting:
            self._waiting.popleft().interrupt()
