"""The server behind the application: the versions that answer, keys, and who is informed of what happens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol

from foundry.config import Serving
from foundry.serving.errors import ApiError, unavailable
from foundry.serving.interface import Exchange
from foundry.serving.keeper import Change
from foundry.serving.keys import Keys
from foundry.serving.metrics import Metrics
from foundry.serving.models import Models
from foundry.serving.recording import RecordedExchange, Recorder, feedback
from foundry.serving.version import Version
from foundry.utils.log import get_logger


class Sink(Protocol):
    """Takes exchanges that are over, on the event loop: it must not block."""

    def exchanged(self, exchange: Exchange) -> None: ...

    def close(self) -> None:
        """Delivers what is waiting."""
        ...


class Running:
    """Implements `foundry.serving.interface.Server` and its `Observer`.

    Attributes:
        stopping: whether it takes no new requests any more.
    """

    def __init__(self, config: Serving, keys: Keys) -> None:
        self.config, self.keys = config, keys
        self.models = Models()
        self.connections: Callable[[], int] = lambda: 0  # how many are open
        self.numbers = Metrics(self.models.versions, lambda: self.connections())
        self.stopping = False
        self.observer = self
        self._recorder = (
            Recorder(config.record, config.record_bytes, lambda: self.numbers.not_recorded("record"))
            if config.record
            else None
        )
        self.sinks: list[Sink] = []

    # what the routes ask

    @contextmanager
    def hold(self, model: str | None) -> Iterator[Version]:
        """See `interface.Server`."""
        if self.stopping:
            raise self._stopping()
        with self.models.hold(model) as version:
            yield version

    def versions(self) -> Sequence[Version]:
        """See `interface.Server`."""
        return self.models.versions()

    def unready(self) -> str | None:
        """See `interface.Server`."""
        if self.stopping:
            return str(self._stopping())
        return None if self.models.versions() else "the model is being loaded"

    def metrics(self) -> bytes:
        """See `interface.Server`."""
        return self.numbers.text()

    def feedback(self, id: str, index: int, rating: Literal[-1, 0, 1], comment: str | None, key: str | None) -> None:
        """See `interface.Server`."""
        if self._recorder is None:
            raise ApiError(404, "this server does not record: start it with serving.record", code="not_recorded")
        self._recorder.add(feedback(id, index, rating, comment, key))

    @staticmethod
    def _stopping() -> ApiError:
        return unavailable("this server is stopping: send the request to another one, or again in a moment", 5)

    # what the routes report

    def responded(self, method: str, route: str, status: int, seconds: float) -> None:
        """See `interface.Observer`."""
        self.numbers.responded(method, route, status, seconds)

    def first_token(self, seconds: float) -> None:
        """See `interface.Observer`."""
        self.numbers.first_token(seconds)

    def next_tokens(self, seconds: float, tokens: int) -> None:
        """See `interface.Observer`."""
        self.numbers.next_tokens(seconds, tokens)

    def exchanged(self, exchange: Exchange) -> None:
        """See `interface.Observer`."""
        self.numbers.exchanged(exchange)
        if self._recorder:
            self._recorder.add(RecordedExchange.of(exchange))
        for sink in self.sinks:
            sink.exchanged(exchange)

    # what the keeper reports

    def changed(self, change: Change) -> None:
        """Reports a change of the served model in the log and the metrics."""
        self.numbers.changed(change.kind)
        log = get_logger().error if change.kind in ("refused", "away") else get_logger().info
        log("model %s: %s", change.kind, change.text)

    def close(self) -> None:
        """Delivers what is waiting for the disk."""
        for sink in self.sinks:
            sink.close()
        if self._recorder:
            self._recorder.close()
