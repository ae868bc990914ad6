"""The thread that owns an engine, so that a server's event loop never waits for the model."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace

from foundry.inference.answer import Answer
from foundry.inference.engine import Engine, deliver
from foundry.inference.request import ClosedError, Listener, QueueFullError, Request, Stats
from foundry.utils.log import get_logger


class Worker:
    """A `Backend`: one thread that steps an engine as long as there are requests.

    Every request that was taken gets exactly one `Finished`. An exception of the model ends the requests of its step
    with an error; one of the engine itself ends all of them, and no more are taken.

    Args:
        engine: used only by this thread from now on.
        queue: requests that may wait for a slot.
    """

    def __init__(self, engine: Engine, queue: int = 128) -> None:
        self._engine, self._queue = engine, queue
        self._arrived: deque[Answer] = deque()
        self._change = threading.Condition()
        self._closing = False
        self._failure: str | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, listener: Listener) -> Answer:
        """Takes a request, see `Backend`."""
        answer = self._engine.answer(request, listener)
        with self._change:
            if self._failure is not None:
                raise ClosedError(f"the engine stopped: {self._failure}")
            if self._closing:
                raise ClosedError("the engine is closing and takes no more requests")
            waiting = len(self._arrived) + self._engine.waiting
            if waiting >= self._queue + self._engine.free:
                raise QueueFullError(waiting)
            self._arrived.append(answer)
            self._change.notify()
        return answer

    def stats(self) -> Stats:
        stats = self._engine.stats()
        return replace(stats, waiting=stats.waiting + len(self._arrived), queue=self._queue)

    def close(self, drain: bool = True) -> None:
        """Takes no more requests and returns when none is left; may be called again, also to stop a drain.

        Args:
            drain: let those that were taken finish; otherwise they end with the reason `cancelled`.
        """
        with self._change:
            self._closing = True
            if not drain:
                for answer in self._arrived:
                    answer.cancel()
                self._engine.cancel_all()
            self._change.notify()
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take():
                deliver(self._engine.step())
        except Exception as e:
            get_logger().exception("the engine stopped")
            with self._change:
                self._failure = f"{type(e).__name__}: {e}"[:500]
                for answer in self._arrived:
                    self._engine.add(answer)
                self._arrived.clear()
            deliver(self._engine.fail_all(f"the engine stopped: {self._failure}"))

    def _take(self) -> bool:
        """Waits for requests and gives them to the engine; False when the worker is closing and none is left."""
        with self._change:
            while self._engine.idle and not self._arrived:
                if self._closing:
                    return False
                self._change.wait()
            while self._arrived:
                self._engine.add(self._arrived.popleft())
            return True
