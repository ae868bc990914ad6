"""Clients of an OpenAI-compatible server: streamed completions over plain sockets, with the times of their tokens.

One thread, and no client library: it would need more of the processor than the server.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HOST = "127.0.0.1"


@dataclass(frozen=True)
class Load:
    """What the clients saw.

    Attributes:
        tokens_per_second: new tokens of all answers, over the time from the first request to the last end.
        first: seconds from each request to the first piece of its text; empty if the server does not stream.
    """

    tokens_per_second: float
    first: list[float]

    def __float__(self) -> float:
        return self.tokens_per_second

    def p99(self) -> float:
        """Seconds; the largest value where there are fewer than a hundred."""
        return float(np.percentile(self.first, 99, method="higher"))


def load(port: int, prompts: Sequence[str], clients: int, body: dict[str, Any], new: int, stream: bool = True) -> Load:
    """So many clients send the prompts, each its share, one after the other.

    Args:
        body: what every request has besides the prompt.
        new: tokens of an answer.

    Raises:
        RuntimeError: if an answer has an error, or another length.
    """
    return asyncio.run(_load(port, prompts, clients, {**body, "max_tokens": new, "stream": stream}, new))


async def _load(port: int, prompts: Sequence[str], clients: int, body: dict[str, Any], new: int) -> Load:
    first: list[float] = []

    async def client(mine: Sequence[str]) -> None:
        for prompt in mine:
            await _ask(port, {**body, "prompt": prompt}, first)

    begin = time.perf_counter()
    await asyncio.gather(*(client(prompts[i::clients]) for i in range(clients)))
    return Load(len(prompts) * new / (time.perf_counter() - begin), first)


async def _ask(port: int, body: dict[str, Any], first: list[float]) -> None:
    data = json.dumps(body).encode()
    begin = time.perf_counter()
    reader, writer = await asyncio.open_connection(HOST, port)
    writer.write(
        f"POST /v1/completions HTTP/1.1\r\nHost: {HOST}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(data)}\r\nConnection: close\r\n\r\n".encode()
        + data
    )
    seen, reason, answer = None, None, []
    while line := await reader.readline():
        answer.append(line)
        text = line.removeprefix(b"data: ").strip()
        if not text.startswith(b"{"):
            continue
        for choice in json.loads(text).get("choices", ()):
            if body["stream"] and seen is None and choice["text"]:
                seen = time.perf_counter() - begin
            reason = choice.get("finish_reason") or reason
    writer.close()
    if reason != "length":
        raise RuntimeError(f"an answer ended by {reason!r}: {b''.join(answer)[-500:].decode(errors='replace')}")
    if seen is not None:
        first.append(seen)
