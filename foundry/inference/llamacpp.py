"""llama.cpp as a `Backend`: the GGUF file of an export, run by the server in the `xllamacpp` wheel.

The server runs in a child process, see `foundry.inference.llamacpp_child`; it gets prompts as token ids. Stop texts and
the text of an answer are ours, so that an answer is cut as by our own engine. The chain of sampling has our order. What
llama.cpp cannot do as we define it is refused by name. Seeds are repeatable there while nothing else runs; that an
answer does not depend on other requests is a promise of our own engine only.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import PARAMETER
from foundry.inference import llamacpp_child
from foundry.inference.llamacpp_child import Settings
from foundry.inference.request import (
    ClosedError,
    Delta,
    Event,
    Finished,
    FinishReason,
    Listener,
    QueueFullError,
    Request,
    Scored,
    Stats,
)
from foundry.inference.text import AnswerText
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import UNK_ID
from foundry.utils.device import cpu_cores
from foundry.utils.log import get_logger

MAX_SEED = 2**32 - 1  # which means "draw one" there
CHAIN = ["penalties", "temperature", "top_n_sigma", "top_k", "top_p", "min_p", "typ_p"]
REFUSED = {  # sampling parameters, and why
    "presence_penalty": "it counts the prompt's tokens there, too",
    "frequency_penalty": "it counts the prompt's tokens there, too",
    "dynatemp_range": "its entropy is another there",
    "top_p_decay": "it is unknown there",
    "min_tokens": "it is unknown there",
}
LOADING = 600.0  # seconds in which the model has to be loaded


class LlamaCppTicket:
    """A request on its way through llama.cpp."""

    def __init__(self, request: Request, listener: Listener) -> None:
        self.request, self.listener = request, listener
        self._seed = random.SystemRandom().randrange(MAX_SEED) if request.seed is None else request.seed
        self.cancelled = False
        self.connection: http.client.HTTPConnection | None = None

    @property
    def seed(self) -> int:
        return self._seed

    def cancel(self) -> None:
        self.cancelled = True
        connection = self.connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits for the next token


class _End(Exception):
    """An answer has ended before llama.cpp ended it."""

    def __init__(self, reason: FinishReason, stop: str | int | None = None, message: str = "") -> None:
        self.finished = Finished(reason, stop, message=message)


class LlamaCpp:
    """A `Backend` over a GGUF file.

    Args:
        path: the file.
        tokenizer: of the model.
        context: positions that the model has.
        slots: answers at the same time.
        queue: requests that may wait for a slot.
        exact: keys and values in float32.
        threads: default: the cores of this process.

    Raises:
        ConfigError: if the wheel is not installed.
        FoundryError: with llama.cpp's last lines, if it cannot load the file.
    """

    def __init__(
        self,
        path: Path,
        tokenizer: Tokenizer,
        context: int,
        *,
        slots: int = 8,
        queue: int = 128,
        exact: bool = False,
        threads: int | None = None,
    ) -> None:
        if find_spec("xllamacpp") is None:
            raise ConfigError("llama.cpp is not installed: pip install foundry-lm[llamacpp]")
        self.tokenizer, self.context, self._slots, self._queue = tokenizer, context, slots, queue
        ids = range(tokenizer.vocab_size)
        self.barred = [i for i in ids if i == UNK_ID or tokenizer.is_control(i)]
        self._bytes = {int(tokenizer.piece(i)[3:5], 16): i for i in ids if tokenizer.is_byte(i)}  # <0xAB>
        self._plain = next(i for i in ids if i not in self.barred and not tokenizer.is_byte(i))
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        settings = Settings(str(path.resolve()), -(-(context + 8) // 256) * 256, slots, threads or cpu_cores(), exact)
        # -P: the script's own folder contains modules of this package, which must not shadow others.
        command = [sys.executable, "-P", llamacpp_child.__file__, json.dumps(asdict(settings))]
        self._child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors)
        self._address = self._loaded(path.name)
        self._change = threading.Condition()
        self._waiting: deque[LlamaCppTicket] = deque()
        self._running: set[LlamaCppTicket] = set()
        self._closing = False
        self._stats = Stats(slots=slots, queue=queue)
        self._threads = [threading.Thread(target=self._work, name=f"llamacpp-{i}", daemon=True) for i in range(slots)]
        for thread in self._threads:
            thread.start()

    def submit(self, request: Request, listener: Listener) -> LlamaCppTicket:
        """Takes a request, see `Backend`; what llama.cpp cannot honour is a `ConfigError`."""
        self._check(request)
        ticket = LlamaCppTicket(request, listener)
        with self._change:
            if self._child.poll() is not None:
                raise ClosedError(self._death())
            if self._closing:
                raise ClosedError("the backend is closing and takes no more requests")
            free = self._slots - len(self._running)
            waiting = sum(not t.cancelled for t in self._waiting)
            if waiting >= self._queue + free:
                raise QueueFullError(waiting)
            self._waiting.append(ticket)
            self._change.notify()
        return ticket

    def stats(self) -> Stats:
        with self._change:
            return replace(self._stats, running=len(self._running), waiting=len(self._waiting))

    def close(self, drain: bool = True) -> None:
        """Takes no more requests, returns when none is left, and ends the child; may be called again."""
        with self._change:
            self._closing = True
            if not drain:
                for ticket in (*self._waiting, *self._running):
                    ticket.cancel()
            self._change.notify_all()
        for thread in self._threads:
            thread.join()
        self._end_child()

    def _end_child(self) -> None:
        if self._child.stdin is not None:
            with contextlib.suppress(OSError):
                self._child.stdin.close()
        try:
            self._child.wait(10)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _loaded(self, name: str) -> str:
        """The server's address, when it is ready."""
        line: list[bytes] = []
        out = self._child.stdout
        reader = threading.Thread(target=lambda: line.append(out.readline()) if out else None, daemon=True)
        reader.start()
        reader.join(LOADING)
        if not line or not line[0].strip():
            if not line:
                self._child.kill()
            self._end_child()
            raise FoundryError(f"llama.cpp cannot load {name}: {self._death() if line else f'not in {LOADING:g} s'}")
        address: str = json.loads(line[0])["address"]
        return address.removeprefix("http://")

    def _death(self) -> str:
        """How the child died, with the end of what it wrote."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        code = self._child.returncode
        how = "is running" if code is None else f"ended with exit code {code}"
        if code is not None and code < 0:
            how = f"died of {signal.Signals(-code).name}"
        self._errors.seek(0)
        last = self._errors.read()[-4000:].decode(errors="replace").strip().splitlines()[-3:]
        return f"llama.cpp {how}:\n  " + "\n  ".join(last)

    def _check(self, request: Request) -> None:
        """Refuses what cannot be honoured."""
        how, size = request.sampling, self.tokenizer.vocab_size
        named = [(n, why) for n, why in REFUSED.items() if getattr(how, n) != PARAMETER[n].off]
        if any(len(word) > 1 for word in how.bad_words):
            named.append(("bad_words", "words of several tokens are unknown there"))
        if request.constraint is not None:
            named.append(("constraint", "it is computed by our own engine"))
        if request.prompt_logprobs is not None:
            named.append(("prompt_logprobs", "it does not report them"))
        if request.past_context != "stop":
            named.append(("past_context", "it only stops at a full context"))
        if request.seed is not None and request.seed >= MAX_SEED:
            named.append(("seed", f"it must be below {MAX_SEED}"))
        if named:
            raise ConfigError(
                "the backend llamacpp cannot honour "
                + "; ".join(f"{name} ({why})" for name, why in named)
                + ": leave it out, or use the backend foundry"
            )
        fits = self.context - 1 if request.max_tokens else self.context
        if len(request.ids) > fits:
            raise ConfigError(
                f"the prompt has {len(request.ids)} tokens with its begin symbol; at most {fits} "
                f"fit the context of {self.context} together with a new token: shorten the prompt"
            )
        if wrong := [i for i in (*request.ids, *request.stop_ids) if not 0 <= i < size]:
            raise ConfigError(f"token ids must be in [0, {size}), got {wrong[0]}")
        if how.largest_id >= size:
            raise ConfigError(f"token ids must be in [0, {size}), got {how.largest_id}")

    def _work(self) -> None:
        while True:
            with self._change:
                while not self._waiting:
                    if self._closing:
                        return
                    self._change.wait()
                ticket = self._waiting.popleft()
                self._running.add(ticket)
            end = self._answered(ticket)
            with self._change:
                self._running.discard(ticket)
                s = self._stats
                self._stats = replace(
                    s,
                    prompt_tokens=s.prompt_tokens + end.prompt_tokens - end.cached_tokens,
                    cached_tokens=s.cached_tokens + end.cached_tokens,
                    completion_tokens=s.completion_tokens + end.completion_tokens,
                )
            _tell(ticket, end)

    def _answered(self, ticket: LlamaCppTicket) -> Finished:
        """Runs a request to its end."""
        text = AnswerText(self.tokenizer, ticket.request.stop)
        progress = {"completion": 0, "cached": 0}
        try:
            for delta in self._deltas(ticket, text, progress):
                if delta.text or delta.tokens:
                    _tell(ticket, delta)
            end = Finished("length")
        except _End as e:
            end = e.finished
        except Exception as e:
            if ticket.cancelled:
                end = Finished("cancelled")
            elif isinstance(e, TimeoutError):
                end = Finished("timeout")
            elif isinstance(e, OSError | http.client.HTTPException):
                end = Finished("error", message=self._death())
            else:
                get_logger().exception("an answer of llama.cpp was not understood")
                end = Finished("error", message=f"the answer of llama.cpp was not understood: {e}"[:500])
        if end.reason != "cancelled" and (rest := text.end()):
            _tell(ticket, Delta(rest, ()))
        return replace(
            end,
            prompt_tokens=len(ticket.request.ids),
            completion_tokens=progress["completion"],
            cached_tokens=progress["cached"],
        )

    def _deltas(self, ticket: LlamaCppTicket, text: AnswerText, progress: dict[str, int]) -> Iterator[Delta]:
        request = ticket.request
        room = min(request.max_tokens, self.context - len(request.ids))
        if room == 0:
            return
        ids = list(request.ids)
        for chunk in self._stream(ticket, self._body(ticket, room)):
            if chunk["stop"]:
                progress["completion"] = chunk["tokens_predicted"]
                progress["cached"] = chunk.get("timings", {}).get("cache_n", 0)
                return
            missing = chunk["tokens_predicted"] - progress["completion"] - len(chunk["tokens"])
            held = self._held(chunk, missing) if missing else []
            scored: list[Scored] = []
            pieces: list[str] = []
            for i, token in enumerate((*held, *chunk["tokens"])):
                progress["completion"] += 1
                if token in request.stop_ids:
                    yield Delta("".join(pieces), tuple(scored))
                    raise _End("stop", token)
                scored.append(self._scored(ticket, ids, token, chunk if i >= missing else None))
                ids.append(token)
                pieces.append(text.add(token))
                if text.found is not None:
                    yield Delta("".join(pieces), tuple(scored))
                    raise _End("stop", text.found)
            yield Delta("".join(pieces), tuple(scored))

    def _held(self, chunk: dict[str, Any], missing: int) -> list[int]:
        """The tokens that were held back: bytes of a character come with the token that completes it, without ids."""
        data = chunk["completion_probabilities"][0]["bytes"]
        held = [self._bytes.get(b, UNK_ID) for b in data[:missing]]
        last = chunk["tokens"][-1]
        rest = [b for b, i in self._bytes.items() if i == last] or list(self.tokenizer.text_of(last).encode())
        if UNK_ID in held or data[missing:] != rest:
            raise _End("error", message="llama.cpp did not report all tokens, because their text is not valid Unicode")
        return held

    def _scored(self, ticket: LlamaCppTicket, ids: list[int], token: int, chunk: dict[str, Any] | None) -> Scored:
        """A token with its log-probabilities; the first bytes of a character have none, and are asked for again."""
        top = ticket.request.logprobs
        if top is None:
            return Scored(token)
        if chunk is None:
            body = {"prompt": ids, "n_predict": 1, "n_probs": self.tokenizer.vocab_size, "temperature": 0}
            (chunk,) = [c for c in self._stream(ticket, {**body, "logit_bias": [[self._plain, 1e6]]}) if not c["stop"]]
            (place,) = chunk["completion_probabilities"]
            logprob = next(e["logprob"] for e in place["top_logprobs"] if e["id"] == token)
        else:
            (place,) = chunk["completion_probabilities"]
            logprob = place["logprob"]
        return Scored(token, logprob, tuple((e["id"], e["logprob"]) for e in place["top_logprobs"][:top]))

    def _body(self, ticket: LlamaCppTicket, n: int) -> dict[str, Any]:
        request = ticket.request
        how = request.sampling
        barred = [i for i in self.barred if i not in request.stop_ids] + [i for word in how.bad_words for i in word]
        return {
            "prompt": list(request.ids),
            "n_predict": n,
            "seed": ticket.seed,
            "n_probs": max(1, request.logprobs or 0),  # without one, bytes are not reported
            "return_tokens": True,
            "cache_prompt": True,
            "samplers": CHAIN,
            "temperature": 0 if how.greedy else how.temperature,
            "top_k": how.top_k,
            "top_p": how.top_p,
            "min_p": how.min_p,
            "typical_p": how.typical_p,
            "top_n_sigma": how.top_n_sigma or -1,
            "repeat_penalty": how.repetition_penalty,
            "repeat_last_n": self.context,
            "logit_bias": [*map(list, how.logit_bias), *([i, False] for i in barred)],
        }

    def _stream(self, ticket: LlamaCppTicket, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The parts of a completion.

        Raises:
            _End: if the request was cancelled, is late or is refused.
            OSError, HTTPException: if the server is gone.
        """
        connection = http.client.HTTPConnection(self._address)
        ticket.connection = connection
        try:
            connection.timeout = _left(ticket)
            connection.request("POST", "/completion", json.dumps({**body, "stream": True}))
            response = connection.getresponse()
            if response.status != 200:
                raise _End("error", message=f"llama.cpp refused the request: {response.read(500).decode()}")
            while line := response.readline():
                if connection.sock is not None:
                    connection.sock.settimeout(_left(ticket))
                if not line.startswith(b"data: "):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise _End("error", message=f"llama.cpp: {chunk['error'].get('message', chunk['error'])}")
                yield chunk
                if chunk["stop"]:
                    return
            raise http.client.IncompleteRead(b"")
        finally:
            connection.close()


def _left(ticket: LlamaCppTicket) -> float | None:
    """Seconds until the deadline."""
    if ticket.cancelled:
        raise _End("cancelled")
    if ticket.request.deadline is None:
        return None
    if (left := ticket.request.deadline - time.monotonic()) <= 0:
        raise _End("timeout")
    return left


def _tell(ticket: LlamaCppTicket, event: Event) -> None:
    try:
        ticket.listener(event)
    except Exception:
        get_logger().exception("a listener failed; its request is cancelled")
        ticket.cancel()
