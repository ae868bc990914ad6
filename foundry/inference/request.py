"""What an engine is asked for and what it answers: the interface between inference and whoever serves it.

A `Backend` takes a `Request` and reports `Event`s to its listener: first `PromptScores` if the request asks for the
scores of its prompt, then one `Delta` per step, and at last exactly one `Finished`, whatever happens. The answer is a
function of the request and its seed, not of other requests, see `foundry.inference.engine`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import Sampling, is_integer

if TYPE_CHECKING:
    from torch import Tensor

MAX_SEED = 2**63

FinishReason = Literal["stop", "length", "cancelled", "timeout", "error"]


class QueueFullError(FoundryError):
    """The queue of a backend is full: the request was not taken.

    Attributes:
        waiting: requests in the queue.
    """

    def __init__(self, waiting: int) -> None:
        super().__init__(waiting)
        self.waiting = waiting

    def __str__(self) -> str:
        return f"{self.waiting} requests are waiting and the queue takes no more: send the request again later"


class ClosedError(FoundryError):
    """The backend takes no requests any more, because it is closing or its model failed."""


class Matcher(Protocol):
    """How far the answer to one request has come in the language of its `Constraint`."""

    @property
    def complete(self) -> bool:
        """Whether the answer may end here: only then are the request's stop ids allowed."""
        ...

    @property
    def over(self) -> bool:
        """Whether the answer is complete and nothing may follow: it ends here, with or without a stop id."""
        ...

    def allowed(self) -> Tensor:
        """The tokens that may come next, stop ids aside: bool (V,). The engine only reads it."""
        ...

    def accept(self, token: int) -> None:
        """Takes the token that was chosen. It is not called with a stop id."""
        ...

    def copy(self) -> Matcher:
        """An independent matcher in the same state."""
        ...


class Constraint(Protocol):
    """A language that the answer has to be in; immutable, one object may serve many requests."""

    def start(self) -> Matcher:
        """The beginning of an answer."""
        ...


@dataclass(frozen=True)
class Request:
    """A prompt and how it is continued.

    Args:
        ids: the prompt with its begin symbol, at least one token.
        sampling: how each token is chosen. No stop string is looked for before its `min_tokens` either.
        max_tokens: the largest number of new tokens, a stop id included; 0 only reads the prompt (for its scores).
        seed: in [0, 2^63); None draws a fresh one, which `Ticket.seed` says.
        stop: texts that end the answer; they are not part of it.
        stop_ids: tokens that end the answer; they are not part of it. Control symbols that are not stop ids, the
            tokenizer's end symbol included, are never generated.
        logprobs: log-probabilities of the raw model (before penalties, temperature and truncation) for each new token,
            and as many alternatives; 0: of the token only; None: none.
        prompt_logprobs: the same for the tokens of the prompt; None: none.
        past_context: at a full context, `stop` ends the answer with the reason `length`; `slide` reads the newer half
            of the text again and continues.
        constraint: a language that the answer has to be in.
        deadline: the value of `time.monotonic()` at which it ends with the reason `timeout`, also in the queue.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks. What depends on the model, such as the context,
            is checked when the request is submitted.
    """

    ids: tuple[int, ...]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int = 100
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    past_context: Literal["stop", "slide"] = "stop"
    constraint: Constraint | None = None
    deadline: float | None = None

    def __post_init__(self) -> None:
        if not self.ids:
            raise ConfigError("the prompt has no token: give it at least its begin symbol")
        if not (is_integer(self.max_tokens) and self.max_tokens >= 0):
            raise ConfigError(f"max_tokens must be an integer of at least 0, got {self.max_tokens!r}")
        if self.sampling.min_tokens > self.max_tokens:
            raise ConfigError(f"min_tokens ({self.sampling.min_tokens}) must be at most max_tokens ({self.max_tokens})")
        if not (self.seed is None or (is_integer(self.seed) and 0 <= self.seed < MAX_SEED)):
            raise ConfigError(f"seed must be None or an integer in [0, 2^63), got {self.seed!r}")
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if not (value is None or (is_integer(value) and value >= 0)):
                raise ConfigError(f"{name} must be None or an integer of at least 0, got {value!r}")
        if not all(isinstance(s, str) and s for s in self.stop):
            raise ConfigError(f"stop must be texts of at least one character, got {self.stop!r}")
        if self.past_context not in ("stop", "slide"):
            raise ConfigError(f"past_context must be 'stop' or 'slide', got {self.past_context!r}")


@dataclass(frozen=True, slots=True)
class Scored:
    """A token with log-probabilities of the raw model, in nats.

    Args:
        logprob: of the token; None if it was not asked for, and for the first token of a prompt, which has none.
        top: the most likely tokens at this place with their log-probabilities, the likeliest first.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptScores:
    """One `Scored` per token of the prompt, once, before the first `Delta`."""

    tokens: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Delta:
    """What a step adds to an answer.

    Args:
        text: joins with that of the other deltas to the text of the answer; it may be empty, because a character or a
            possible stop text is not yet complete.
        tokens: new tokens of this step without a stop id: one, or several after speculation. The last delta may have
            text and no token.
    """

    text: str
    tokens: tuple[Scored, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer.

    Args:
        reason: `stop` (a stop text or id), `length` (max_tokens, or a full context), `cancelled`, `timeout`, `error`.
        stop: the stop text or id that ended it.
        prompt_tokens: of the prompt.
        completion_tokens: that were generated, a stop id included.
        cached_tokens: of the prompt that were not computed, because another prompt began with them.
        drafted: tokens that speculation proposed.
        accepted: how many of them the model took.
        message: for the reason `error`, what happened.
        scored: the stop id with its log-probabilities, if the request asks for those of new tokens.
    """

    reason: FinishReason
    stop: str | int | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    drafted: int = 0
    accepted: int = 0
    message: str = ""
    scored: Scored | None = None


Event = PromptScores | Delta | Finished
Listener = Callable[[Event], None]


@dataclass(frozen=True)
class Stats:
    """A backend at a moment. Totals count from its start.

    Args:
        running: requests in the batch.
        waiting: requests in the queue.
        slots: requests that fit the batch.
        queue: requests that fit the queue.
        cache_tokens: tokens in the key/value cache that running requests use or later ones may reuse.
        cache_size: tokens that fit the cache.
        prompt_tokens: total of prompt tokens that the model read.
        cached_tokens: total of prompt tokens that came from the cache instead.
        completion_tokens: total of new tokens.
        drafted, accepted: totals of speculation.
    """

    running: int = 0
    waiting: int = 0
    slots: int = 0
    queue: int = 0
    cache_tokens: int = 0
    cache_size: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    drafted: int = 0
    accepted: int = 0


class Ticket(Protocol):
    """A submitted request."""

    @property
    def seed(self) -> int:
        """The seed of the request: its own, or the one that was drawn."""
        ...

    def cancel(self) -> None:
        """Ends the request with the reason `cancelled`; nothing happens if it has ended. Callable from any thread."""
        ...


class Backend(Protocol):
    """Answers requests, many at a time. All methods can be called from any thread."""

    def submit(self, request: Request, listener: Listener) -> Ticket:
        """Takes a request.

        Args:
            listener: is called in the backend's thread with each event and must not block.

        Raises:
            ConfigError: (a `ValueError`) for a request that this model cannot answer.
            QueueFullError: if the queue is full.
            ClosedError: after `close`, or after the model failed.
        """
        ...

    def stats(self) -> Stats: ...

    def close(self, drain: bool = True) -> None:
        """Takes no more requests and returns when none is left.

        Args:
            drain: let those that were taken finish; otherwise they end with the reason `cancelled`.
        """
        ...
