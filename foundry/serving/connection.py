"""One connection of uvicorn with the time limits that uvicorn lacks.

A client that sends its headers or its body too slowly, or does not read its answer, is disconnected: its buffers, its
file descriptor and its place in the engine become free. What is not HTTP gets OpenAI's error object, too.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from foundry.config.serving import Serving
from foundry.serving.errors import ApiError, invalid

MARGIN = 5.0  # seconds that a request without its body is left open after `body_seconds`, for the answer 408
SLOWEST = 1024  # bytes per second that a client has to read of what is ready for it


class Connection(H11Protocol):
    """uvicorn's `http` argument; `limited` makes the class for a configuration.

    At any time at most one of these limits runs:

    - `header_seconds`, from the first byte of a connection or request to the end of its headers;
    - `body_seconds`, from there to the end of the body, whether the application reads it or has refused it;
    - `write_seconds`, in which the client has to read `SLOWEST` bytes per second of an answer that does not fit the
      buffers of the operating system, also after its end and while the connection is closing.
    """

    limits: Serving

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.access_log = False  # its lines have whole paths; `foundry.serving.app` writes the log
        self._reading: asyncio.TimerHandle | None = None
        self._writing: asyncio.TimerHandle | None = None
        self._request: object | None = None

    @classmethod
    def limited(cls, limits: Serving) -> type[Connection]:
        """A class of connections with these limits."""
        return type("LimitedConnection", (cls,), {"limits": limits})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if sock := transport.get_extra_info("socket"):
            # asyncio does it only for sockets that were made with the number of the protocol; without it, the second
            # part of an answer waits for the client's delayed acknowledgement, 40 ms.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.max_connections:
            self._answer(ApiError(503, "this server has too many connections", headers={"Retry-After": "1"}))
            return
        self._reading = self.loop.call_later(self.limits.header_seconds, self._abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_reading()
        self._stop_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self.flow.write_paused:  # the answer to a further request would count as not read
            self._stop_writing()
        super().data_received(data)
        self._watch_request()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch_request()
        self._watch_writing()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        self._stop_writing()
        super().resume_writing()

    def _watch_writing(self) -> None:
        """Looks after `write_seconds` whether the client has read enough of what is in the buffer now."""
        if self._writing is None and (left := self.transport.get_write_buffer_size()):
            self._writing = self.loop.call_later(self.limits.write_seconds, self._check_writing, left)

    def _check_writing(self, before: int) -> None:
        self._writing = None
        read = before - self.transport.get_write_buffer_size()  # meanwhile the application has written nothing
        if read < min(before, SLOWEST * self.limits.write_seconds):
            self._abort()
        else:
            self._watch_writing()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing.cancel()
            self._writing = None

    def send_400_response(self, msg: str) -> None:
        """What uvicorn sends for bytes that are not HTTP."""
        self._answer(invalid("this is not a valid HTTP request, or its headers are too large", code="invalid_http"))

    def _watch_request(self) -> None:
        """Sets the limit for what the client has to send next."""
        if self.transport.is_closing():
            self._stop_reading()
            return
        state = self.conn.their_state
        if state is h11.SEND_BODY:
            if self._request is not self.cycle:
                self._stop_reading()
                self._request = self.cycle
                self._reading = self.loop.call_later(self.limits.body_seconds + MARGIN, self._abort)
        elif state is h11.IDLE and self.conn.trailing_data[0]:  # the beginning of a further request
            if self._request is not None or self._reading is None:
                self._stop_reading()
                self._request = None
                self._reading = self.loop.call_later(self.limits.header_seconds, self._abort)
        else:  # complete, or an idle connection, which uvicorn closes after `timeout_keep_alive`
            self._stop_reading()

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading.cancel()
            self._reading = None

    def _abort(self) -> None:
        self.transport.abort()

    def _answer(self, error: ApiError) -> None:
        """Sends an error without the application and closes the connection."""
        if self.conn.our_state is h11.IDLE or self.conn.our_state is h11.SEND_RESPONSE:
            content = error.body()
            headers = {"content-type": "application/json", "content-length": str(len(content)), "connection": "close"}
            own = [(k.encode(), v.encode()) for k, v in {**headers, **error.headers}.items()]
            for event in (
                h11.Response(status_code=error.status, headers=own),
                h11.Data(data=content),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
