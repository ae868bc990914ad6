"""Bodies of requests: bounded in size, time and depth, and JSON without any of its ambiguities."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any, NoReturn, TypeVar

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from foundry.serving.errors import ApiError, invalid, shown
from foundry.serving.protocol import In, parse
from foundry.serving.state import Common

T = TypeVar("T", bound=In)
INLINE = 16 << 10  # bytes that are parsed on the event loop, which takes less time than to hand them over
DIGITS = 400  # of a number: more than any float has


class Disconnected(Exception):
    """The client closed the connection before its request was answered."""


async def read_request(
    scope: Scope, receive: Receive, common: Common, kind: type[T]
) -> tuple[dict[str, Any], T, dict[str, Any]]:
    """The JSON object in the body of a request, what it asks for, and its sampling parameters, which are not checked.

    Raises:
        ApiError: 400, 408, 413 or 415.
        Disconnected: if the client goes away meanwhile.
    """
    config = common.server.config
    data = await _read(Headers(scope=scope), receive, config.max_body_bytes, config.body_seconds)

    def understand() -> tuple[dict[str, Any], T, dict[str, Any]]:
        body = parse_object(data, config.max_json_depth)
        return body, *parse(kind, body)

    return understand() if len(data) <= INLINE else await common.off_loop(understand)


async def _read(headers: Headers, receive: Receive, limit: int, seconds: float) -> bytes:
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # a form of a foreign page can be sent without the browser asking this server
        raise ApiError(415, f"send the header Content-Type: application/json, got {shown(kind) if kind else 'none'}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "compressed bodies are not accepted: leave out Content-Encoding")
    length = headers.get("content-length", "0")
    if length.isdecimal() and len(length) < 20 and int(length) > limit:
        raise _too_large(limit)
    parts, size = [], 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Disconnected
                part = message.get("body", b"")
                size += len(part)
                if size > limit:
                    raise _too_large(limit)
                parts.append(part)
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {seconds:g} s", headers={"Connection": "close"}) from None


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"the body must have at most {limit} bytes (serving.max_body_bytes)", code="body_too_large")


def parse_object(data: bytes, depth: int) -> dict[str, Any]:
    """A JSON object.

    Args:
        depth: levels of nested lists and objects that are allowed.

    Raises:
        ApiError: 400 for anything but valid UTF-8, JSON as RFC 8259 has it (no NaN), distinct keys, whole characters,
            and numbers of a sensible length.
    """
    try:
        value = json.loads(
            data.decode(), parse_constant=_no_constant, object_pairs_hook=_distinct, parse_int=_int, parse_float=_float
        )
    except UnicodeDecodeError as e:
        raise invalid(f"the body is not valid UTF-8: byte {e.start} is {data[e.start]:#04x}") from None
    except json.JSONDecodeError as e:
        raise invalid(f"the body is not valid JSON: {e.msg}, line {e.lineno}, column {e.colno}") from None
    except RecursionError:
        raise _too_deep(depth) from None
    if not isinstance(value, dict):
        raise invalid("the body must be a JSON object")
    _check(value, depth)
    return value


def _check(value: Any, depth: int) -> None:
    """Refuses too many levels, and halves of surrogate pairs, which only an escape can give."""
    level: list[Any] = [value]
    for _ in range(depth):
        inner = []
        for container in level:
            parts: Iterable[Any] = container
            if isinstance(container, dict):
                parts = [*container, *container.values()]
            for part in parts:
                if isinstance(part, (dict, list)):
                    inner.append(part)
                elif isinstance(part, str) and not part.isascii():
                    _check_text(part)
        if not inner:
            return
        level = inner
    raise _too_deep(depth)


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as e:
        raise invalid(f"the body has half of a surrogate pair, \\u{ord(text[e.start]):04x}") from None


def _too_deep(depth: int) -> ApiError:
    return invalid(f"the body is nested more than {depth} levels deep (serving.max_json_depth)")


def _no_constant(name: str) -> NoReturn:
    raise invalid(f"the body is not valid JSON: {name} is not a number")


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        raise invalid(f"the body has the key {shown(twice)} twice in one object")
    return found


def _int(text: str) -> int:
    if len(text) > DIGITS:
        raise invalid(f"the body has a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), float("-inf")):
        raise invalid(f"the body has a number that is too large: {shown(text, 40)}")
    return value
