"""What the routes need from the server, and what they report to it: the interface inside `foundry.serving`."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from foundry.config.serving import Serving
from foundry.serving.keys import Keys
from foundry.serving.version import Version


@dataclass(frozen=True)
class Answer:
    """One choice of a response.

    Attributes:
        index: of the choice in the response.
        prompt: of the prompt in the request; 0 unless the request has a list of prompts.
        seed: with which the same text is generated again.
        reason: the engine's reason why it ended.
    """

    index: int
    prompt: int
    text: str
    seed: int
    reason: Literal["stop", "length", "cancelled", "timeout", "error"]
    completion_tokens: int


@dataclass(frozen=True)
class Exchange:
    """A request for text and what was answered, when it is over.

    Attributes:
        id: of the response (`cmpl-…`, `chatcmpl-…`); feedback refers to it.
        route: `/v1/completions` or `/v1/chat/completions`.
        key: name of the API key; None without keys.
        started: Unix time in seconds.
        accepted_tokens, rejected_tokens: that speculation proposed and the model took, or did not.
        body: the request's JSON object as it was received.
        status: of the response; 499 if the client disconnected before the answer was complete.
    """

    id: str
    request_id: str
    route: str
    key: str | None
    version: Version
    started: float
    seconds: float
    stream: bool
    body: dict[str, Any]
    answers: tuple[Answer, ...]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    accepted_tokens: int
    rejected_tokens: int
    status: int


class Observer(Protocol):
    """Is informed of what happens, on the event loop: it must not block."""

    def responded(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response of any route is complete; `route` is its path in the table of routes, or `unknown`."""

    def first_token(self, seconds: float) -> None:
        """Seconds from the arrival of a request for text to its first token."""

    def next_tokens(self, seconds: float, tokens: int) -> None:
        """So many further tokens of one answer came `seconds` after the ones before."""

    def exchanged(self, exchange: Exchange) -> None:
        """A request for text is over, whatever its end."""


class Server(Protocol):
    """What serves: the argument of `foundry.serving.app.build_app`."""

    config: Serving
    keys: Keys
    observer: Observer

    def hold(self, model: str | None) -> AbstractContextManager[Version]:
        """The version that answers a request for this model (None: the current one).

        It is not unloaded before the context ends.

        Raises:
            ApiError: 404 if nothing is called so; 503 while loading and after SIGTERM.
        """
        ...

    def versions(self) -> Sequence[Version]:
        """Loaded versions, the one that takes new requests first; empty while loading."""
        ...

    def unready(self) -> str | None:
        """Why new requests are refused now, as a sentence for a user; None if they are taken."""
        ...

    def feedback(self, id: str, index: int, rating: Literal[-1, 0, 1], comment: str | None, key: str | None) -> None:
        """Records what a person thought of an answer.

        Args:
            id: of the response.
            index: of the choice in it.
            rating: 1 is good, -1 is bad, 0 takes an earlier rating back.
            key: name of the API key; None without keys.

        Raises:
            ApiError: 404 if the server does not record.
        """
        ...

    def metrics(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        ...
