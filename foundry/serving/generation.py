"""A request for text, from its body to the last byte of its answer.

Everything slow (parsing a large body, tokenising, grammars, writing a large answer) runs in a pool of threads, the
model in the engine's. The event loop only moves events. A client that disconnects cancels its answers at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from foundry.config import ConfigError
from foundry.inference.request import ClosedError, Delta, Event, Finished, QueueFullError, Scored, Ticket
from foundry.serving.body import Disconnected, read_request
from foundry.serving.errors import CLIENT_CLOSED, ApiError, internal, invalid, unavailable
from foundry.serving.forms import Form, Head, Outcome, failed, usage_of
from foundry.serving.interface import Answer, Exchange
from foundry.serving.planning import Plan
from foundry.serving.state import Call, Common
from foundry.serving.version import Version
from foundry.utils.log import get_logger

RETRY_SECONDS = 1  # until a client that found the queue full should send its request again
STREAM = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-store", "X-Accel-Buffering": "no"}
WHOLE = {"Content-Type": "application/json", "Cache-Control": "no-store"}


class Generation(Response):
    """The response of a route for text.

    Args:
        common: what all requests share.
        form: the kind of request.
    """

    def __init__(self, common: Common, form: type[Form[Any]]) -> None:
        self.common, self.form = common, form
        self.background = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        common, server, call = self.common, self.common.server, Call.of(scope)
        body, asked, sampling = await read_request(scope, receive, common, self.form.kind)
        deadline = call.arrived + server.config.request_seconds
        with ExitStack() as stack:
            version = stack.enter_context(server.hold(asked.model))
            call.answered_by(version)
            plan = await common.off_loop(self.form.plan, version, asked, sampling, server.config, deadline)
            if call.key:
                call.key.reserve(plan.most_tokens)
            call.headers["X-Foundry-Seed"] = str(plan.seed)
            head = Head(
                id=self.form.prefix + secrets.token_hex(12),
                created=int(time.time()),
                model=version.name,
                fingerprint=version.facts.fingerprint,
                seed=plan.seed,
                dropped_messages=plan.dropped,
            )
            run = Run(common, call, plan)
            status = 500
            try:
                run.submit(version)
                form = self.form(version, asked, head)
                with run.watching(receive):
                    await (_stream if asked.stream else _whole)(form, run, send)
                status = 200
            except Disconnected:
                status = CLIENT_CLOSED
                raise
            except ApiError as e:
                status = e.status
                raise
            finally:
                run.cancel()
                self._report(version, head, body, asked.stream, run, status)

    def _report(self, version: Version, head: Head, body: dict[str, Any], stream: bool, run: Run, status: int) -> None:
        """Settles with the key, and informs the log and the observer."""
        call, usage = run.call, usage_of(run.outcomes, run.plan)
        if call.key:
            call.key.settle(run.plan.most_tokens, usage.total_tokens if run.tickets else 0)
        call.notes.append(f"{usage.prompt_tokens} + {usage.completion_tokens} tokens, seed {head.seed}")
        answers = tuple(
            Answer(
                index=i,
                prompt=o.job.prompt,
                text="".join(o.text),
                seed=o.job.seed,
                reason=o.end.reason if o.end else "cancelled",
                completion_tokens=o.completion_tokens,
            )
            for i, o in enumerate(run.outcomes)
        )
        self.common.server.observer.exchanged(
            Exchange(
                id=head.id,
                request_id=call.request_id,
                route=self.form.route,
                key=call.key.name if call.key else None,
                version=version,
                started=call.started,
                seconds=call.seconds,
                stream=stream,
                body=body,
                answers=answers,
                prompt_tokens=usage.prompt_tokens,
                cached_tokens=usage.prompt_tokens_details.cached_tokens,
                completion_tokens=usage.completion_tokens,
                accepted_tokens=usage.completion_tokens_details.accepted_prediction_tokens,
                rejected_tokens=usage.completion_tokens_details.rejected_prediction_tokens,
                status=status,
            )
        )


class Run:
    """The jobs of a request in the engine, and what has come of them."""

    def __init__(self, common: Common, call: Call, plan: Plan) -> None:
        self.common, self.call, self.plan = common, call, plan
        self.outcomes = [Outcome(job) for job in plan.jobs]
        self.tickets: list[Ticket] = []
        self._inbox = common.post.inbox()
        self._gone = False
        self._last: dict[int, float] = {}  # when the last token of an answer came

    def submit(self, version: Version) -> None:
        """Gives all jobs to the engine.

        Raises:
            ApiError: 429 if its queue is full, 503 if it is closing, 400 if it cannot answer one of them.
        """
        for i, job in enumerate(self.plan.jobs):
            try:
                self.tickets.append(version.backend.submit(job.request, self._inbox.listener(i)))
            except QueueFullError as e:
                raise ApiError(429, str(e), code="queue_full", headers={"Retry-After": str(RETRY_SECONDS)}) from None
            except ClosedError:
                raise unavailable("this server is stopping, or its model is being replaced") from None
            except ConfigError as e:
                raise invalid(str(e)) from None

    def cancel(self) -> None:
        """Ends what still runs."""
        for ticket, outcome in zip(self.tickets, self.outcomes, strict=False):
            if outcome.end is None:
                ticket.cancel()

    @contextmanager
    def watching(self, receive: Receive) -> Iterator[None]:
        """Meanwhile notices that the client disconnects."""

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            self._gone = True
            self._inbox.interrupt()

        task = asyncio.get_running_loop().create_task(watch())
        try:
            yield
        finally:
            task.cancel()

    async def events(self) -> AsyncIterator[list[tuple[int, Event]]]:
        """Events by number of the answer, until all answers are complete. What is late comes together.

        Raises:
            Disconnected: if the client went away.
            ApiError: if an answer failed.
        """
        left = len(self.outcomes)
        while left:
            events = await self._inbox.wait()
            if self._gone:
                raise Disconnected
            for i, event in events:
                self._observe(i, event)
                self.outcomes[i].take(event)
                if isinstance(event, Finished):
                    left -= 1
                    self._check(self.outcomes[i], event)
            if events:
                yield events

    def _observe(self, i: int, event: Event) -> None:
        if not isinstance(event, Delta) or not event.tokens:
            return
        now, observer = time.monotonic(), self.common.server.observer
        if i in self._last:
            observer.next_tokens(now - self._last[i], len(event.tokens))
        else:
            observer.first_token(now - self.call.arrived)
        self._last[i] = now

    def _check(self, outcome: Outcome, end: Finished) -> None:
        if end.reason == "error":
            get_logger().error(f"the engine failed at {self.call.request_id}: {end.message}")
            raise internal(self.call.request_id)
        if end.reason == "cancelled":
            raise unavailable("the answer was cancelled because this server is stopping")
        if end.reason == "timeout" and not outcome.tokens:
            seconds = self.common.server.config.request_seconds
            raise unavailable(f"no token was generated within {seconds:g} s: the server is overloaded", 10)


async def _whole(form: Form[Any], run: Run, send: Send) -> None:
    async for _ in run.events():
        pass
    if form.scored:  # up to some megabytes
        content = await run.common.off_loop(form.whole, run.outcomes, run.plan)
    else:
        content = form.whole(run.outcomes, run.plan)
    await send({"type": "http.response.start", "status": 200, "headers": _raw(WHOLE | _length(content))})
    await send({"type": "http.response.body", "body": content})


async def _stream(form: Form[Any], run: Run, send: Send) -> None:
    """Sends events as they come. The response begins with the first one, so that an early failure has its status."""
    opened: set[int] = set()
    started = False
    try:
        async for events in run.events():
            out = _chunks(form, run, events, opened)
            if not started:
                await send({"type": "http.response.start", "status": 200, "headers": _raw(STREAM)})
                started = True
            if out:
                await send({"type": "http.response.body", "body": out, "more_body": True})
        end = form.last(run.outcomes, run.plan)
    except ApiError as e:
        if not started:
            raise
        end = failed(e)
    await send({"type": "http.response.body", "body": end})


def _chunks(form: Form[Any], run: Run, events: list[tuple[int, Event]], opened: set[int]) -> bytes:
    """The parts of a stream for some events, those of one answer joined."""
    texts: dict[int, list[str]] = {}
    tokens: dict[int, list[Scored]] = {}
    ended = []
    for i, event in events:
        texts.setdefault(i, [])
        if isinstance(event, Delta):
            texts[i].append(event.text)
            tokens.setdefault(i, []).extend(event.tokens)
        elif isinstance(event, Finished):
            ended.append(i)
    out = []
    for i, parts in texts.items():
        outcome = run.outcomes[i]
        if i not in opened:
            opened.add(i)
            if (choice := form.opening(i, outcome)) is not None:
                out.append(form.chunk(choice))
        text, new = "".join(parts), tokens.get(i, [])
        if text or (new and form.scored):
            out.append(form.chunk(form.part(i, outcome, text, new)))
        if i in ended:
            out.append(form.chunk(form.ending(i, outcome)))
    return b"".join(out)


def _length(content: bytes) -> dict[str, str]:
    return {"Content-Length": str(len(content))}


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(k.lower().encode("latin-1"), v.encode("latin-1")) for k, v in headers.items()]
