"""The versions that a server has loaded: one takes new requests, former ones finish theirs and are closed."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from foundry.serving.errors import unavailable, unknown_model
from foundry.serving.folders import Loaded
from foundry.serving.version import Version
from foundry.utils.log import get_logger


@dataclass
class _Held:
    """A loaded version, and how many requests it is answering."""

    version: Version
    release: Callable[[], None]
    requests: int = 0
    free: threading.Condition = field(default_factory=threading.Condition)


class Models:
    """Which version answers. All methods can be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._current: _Held | None = None
        self._former: list[_Held] = []
        self._closing: list[threading.Thread] = []

    def serve(
        self, loaded: Loaded, aliases: tuple[str, ...] = (), release: Callable[[], None] = lambda: None
    ) -> Version:
        """Sends new requests to a loaded model from now on.

        The version before finishes the requests that it has, in the background; then it is closed and its memory is
        freed. Until then it is listed as NAME/VERSION.

        Args:
            aliases: other names that clients may give.
            release: is called when the model is closed.
        """
        version = Version(loaded.name, loaded.backend, loaded.tokenizer, loaded.facts, int(time.time()), aliases)
        with self._lock:
            former, self._current = self._current, _Held(version, release)
            if former:
                v = former.version
                former.version = replace(
                    v, name=f"{v.name}/{v.facts.version or v.facts.weights_sha256[:12]}", aliases=()
                )
                self._former.append(former)
                self._closing = [t for t in self._closing if t.is_alive()]
                self._closing.append(threading.Thread(target=self._retire, args=(former,), name="retire", daemon=True))
                self._closing[-1].start()
        return version

    @contextmanager
    def hold(self, name: str | None) -> Iterator[Version]:
        """The version that answers a request for a model; it stays loaded until the block ends.

        Raises:
            ApiError: 404 if nothing is called so, 503 if nothing is loaded yet.
        """
        with self._lock:
            held = self._current
            if held is None:
                raise unavailable("the model is being loaded: send the request again in a moment")
            if name is not None and not held.version.answers_to(name):
                raise unknown_model(name, [held.version.name])
            with held.free:
                held.requests += 1
            version = held.version
        try:
            yield version
        finally:
            with held.free:
                held.requests -= 1
                held.free.notify_all()

    def versions(self) -> list[Version]:
        """The version that takes new requests, then former ones that still answer."""
        with self._lock:
            return [held.version for held in (self._current, *reversed(self._former)) if held]

    @property
    def requests(self) -> int:
        """Requests that are being answered."""
        with self._lock:
            return sum(held.requests for held in (self._current, *self._former) if held)

    def _retire(self, held: _Held) -> None:
        with held.free:
            held.free.wait_for(lambda: held.requests == 0)
        name = held.version.name
        _close(held, drain=True)
        with self._lock:
            self._former.remove(held)
        del held.version  # the last reference to it
        gc.collect()  # parts of an engine refer to each other
        get_logger().info("closed %s: its last request is answered", name)

    def close(self, drain: bool) -> None:
        """Closes every version.

        Args:
            drain: let requests that are running finish; otherwise they end as cancelled.
        """
        with self._lock:
            held, self._current = [h for h in (self._current, *self._former) if h], None
            closing = list(self._closing)
        for h in held:
            h.version.backend.close(drain=drain)
        for thread in closing:
            thread.join(timeout=5)
        for h in held:
            h.release()


def _close(held: _Held, drain: bool) -> None:
    try:
        held.version.backend.close(drain=drain)
    finally:
        held.release()
