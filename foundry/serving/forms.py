"""What `/v1/completions` and `/v1/chat/completions` have in common: the form of a request and of its response."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Generic, TypeVar

from foundry.config.serving import Serving
from foundry.inference.request import Delta, Event, Finished, PromptScores, Scored
from foundry.serving.errors import ApiError
from foundry.serving.planning import Job, Plan
from foundry.serving.protocol import (
    Choice,
    CompletionDetails,
    Options,
    PromptDetails,
    Reason,
    Usage,
)
from foundry.serving.version import Version

DONE = b"data: [DONE]\n\n"
T = TypeVar("T", bound=Options)


@dataclass(frozen=True)
class Head:
    """What every part of a response repeats.

    Attributes:
        created: Unix time in seconds.
        fingerprint: of the model's training run.
        seed: of the first answer.
        dropped_messages: of the conversation, which the model did not read; None: the key is left out.
    """

    id: str
    created: int
    model: str
    fingerprint: str
    seed: int
    dropped_messages: int | None = None


@dataclass
class Outcome:
    """What has come of a job so far."""

    job: Job
    text: list[str] = field(default_factory=list)
    tokens: list[Scored] = field(default_factory=list)
    prompt: tuple[Scored, ...] = ()
    end: Finished | None = None

    def take(self, event: Event) -> None:
        """Adds an event."""
        match event:
            case Delta():
                if event.text:
                    self.text.append(event.text)
                self.tokens += event.tokens
            case PromptScores():
                self.prompt = event.tokens
            case Finished():
                self.end = event

    @property
    def completion_tokens(self) -> int:
        """Tokens that were generated so far."""
        return self.end.completion_tokens if self.end else len(self.tokens)

    @property
    def reason(self) -> Reason | None:
        """The reason of the end as the OpenAI API has it; None before the end. A timeout is a length in time."""
        if self.end is None:
            return None
        return "stop" if self.end.reason == "stop" else "length"

    @property
    def stop_reason(self) -> str | int | None:
        """What exactly ended the answer: a stop text or id, or `timeout`."""
        if self.end is None:
            return None
        return "timeout" if self.end.reason == "timeout" else self.end.stop


class Form(ABC, Generic[T]):
    """A kind of request for text: how it is planned, and how its answers are written.

    Args:
        asked: the request.
        head: of the response.
    """

    route: ClassVar[str]
    prefix: ClassVar[str]
    kind: ClassVar[type[Options]]
    whole_object: ClassVar[str]
    part_object: ClassVar[str]

    def __init__(self, version: Version, asked: T, head: Head) -> None:
        self.version, self.asked, self.head = version, asked, head

    @classmethod
    @abstractmethod
    def plan(cls, version: Version, asked: T, sampling: dict[str, Any], config: Serving, deadline: float) -> Plan:
        """What the engine has to do.

        Raises:
            ApiError: 400 that names the field.
        """

    @abstractmethod
    def choices(self, outcomes: Sequence[Outcome]) -> list[Choice]:
        """The choices of a response that is not streamed."""

    @abstractmethod
    def opening(self, index: int, outcome: Outcome) -> Choice | None:
        """The first part of a choice, before its text; None if there is none."""

    @abstractmethod
    def part(self, index: int, outcome: Outcome, text: str, tokens: Sequence[Scored]) -> Choice:
        """A part of a choice with new text and tokens."""

    @abstractmethod
    def ending(self, index: int, outcome: Outcome) -> Choice:
        """The last part of a choice, with the reason why it ended."""

    @property
    def scored(self) -> bool:
        """Whether the answer has log-probabilities."""
        raise NotImplementedError

    def whole(self, outcomes: Sequence[Outcome], plan: Plan) -> bytes:
        """The body of a response that is not streamed."""
        choices = ",".join(c.model_dump_json() for c in self.choices(outcomes))
        usage = usage_of(outcomes, plan).model_dump_json()
        return f'{self._before(self.whole_object)}"choices":[{choices}],"usage":{usage}}}'.encode()

    def chunk(self, choice: Choice) -> bytes:
        """A part of a choice as a server-sent event."""
        usage = ',"usage":null' if self.asked.include_usage else ""
        body = choice.model_dump_json(exclude_unset=True)
        return f'data: {self._begin}"choices":[{body}]{usage}}}\n\n'.encode()

    def last(self, outcomes: Sequence[Outcome], plan: Plan) -> bytes:
        """The events after the last choice: the usage, if it was asked for, and the end."""
        if not self.asked.include_usage:
            return DONE
        usage = usage_of(outcomes, plan).model_dump_json()
        return f'data: {self._begin}"choices":[],"usage":{usage}}}\n\n'.encode() + DONE

    @cached_property
    def _begin(self) -> str:
        """The beginning of every part of a stream."""
        return self._before(self.part_object)

    def _before(self, name: str) -> str:
        head = self.head
        fields = {
            "id": head.id,
            "object": name,
            "created": head.created,
            "model": head.model,
            "system_fingerprint": head.fingerprint,
            "seed": head.seed,
        }
        if head.dropped_messages is not None:
            fields["dropped_messages"] = head.dropped_messages
        return json.dumps(fields, ensure_ascii=False)[:-1] + ","


def failed(error: ApiError) -> bytes:
    """An error after the response has begun, as the official client understands it."""
    return b"data: " + error.body() + b"\n\n" + DONE


def usage_of(outcomes: Iterable[Outcome], plan: Plan) -> Usage:
    """Tokens of a request: each prompt once, all answers that were generated."""
    outcomes = list(outcomes)
    completion = sum(o.completion_tokens for o in outcomes)
    first = {o.job.prompt: o.end.cached_tokens for o in reversed(outcomes) if o.end}
    accepted = sum(o.end.accepted for o in outcomes if o.end)
    return Usage(
        prompt_tokens=plan.prompt_tokens,
        completion_tokens=completion,
        total_tokens=plan.prompt_tokens + completion,
        prompt_tokens_details=PromptDetails(cached_tokens=sum(first.values())),
        completion_tokens_details=CompletionDetails(
            accepted_prediction_tokens=accepted,
            rejected_prediction_tokens=sum(o.end.drafted for o in outcomes if o.end) - accepted,
        ),
    )
