"""A server from its socket to its exit code.

It listens at once, loads its model beside (`/ready` is 503 until then), and serves until SIGTERM or Ctrl-C: running
requests finish, new ones get a 503 with `Connection: close`, and the process ends with 0 when the last one is answered.
Those that `serving.grace_seconds` cuts off make it 1. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING

from foundry.config import ConfigError, FoundryError, Serving
from foundry.serving.keeper import Keeper
from foundry.serving.keys import VARIABLE, Keys
from foundry.serving.server import Running
from foundry.serving.version import Version
from foundry.utils.log import get_logger

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

BACKLOG = 1024
OWN_FILES = 256  # descriptors that the process needs besides those of connections


def listen(serving: Serving, keys: Keys) -> socket.socket:
    """The socket that the server listens on.

    Raises:
        ConfigError: if the address does not exist here or its port is in use, or if others could reach it and there is
            no key.
    """
    host, port = serving.host, serving.port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as e:
        raise ConfigError(f"serving.host {host[:100]!r} is not an address: {str(e)[:100]}") from None
    family, *_, address = found[0]
    if not len(keys) and not ipaddress.ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"{host} can be reached from other machines, and there is no API key: name a file of keys in "
            f"serving.keys_file, set {VARIABLE}, or listen on 127.0.0.1"
        )
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        why = "another program listens there; choose another port (serving.port, --port)"
        raise ConfigError(f"cannot listen on {url(host, port)}: {why if e.errno == 98 else e.strerror}") from None
    sock.setblocking(False)
    return sock


def url(host: str, port: int) -> str:
    """The address of the page."""
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def allow_connections(serving: Serving) -> None:
    """Raises this process's limit of open files as far as the connections need it.

    Raises:
        ConfigError: if the system does not allow as many.
    """
    needed = serving.max_connections + OWN_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise ConfigError(
            f"serving.max_connections ({serving.max_connections}) needs {needed} open files, and this process may have "
            f"{hard}: lower it, or raise the limit (ulimit -n; LimitNOFILE of systemd)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _closing(app: ASGIApp, server: Running) -> ASGIApp:
    """The application; while the server stops, every response ends its connection."""

    async def wrapped(scope: Scope, receive: Receive, send: Send) -> None:
        async def answer(message: Message) -> None:
            if server.stopping and message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", []), (b"connection", b"close")]}
            await send(message)

        await app(scope, receive, answer)

    return wrapped


class _Stop:
    """Signals: the first one is passed on, a second one ends the process at once."""

    def __init__(self, first: Callable[[], None]) -> None:
        self._first, self.signal = first, 0

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if self.signal:
            os._exit(128 + signum)
        self.signal = signum
        self._first()


def serve(
    server: Running, keeper: Keeper, sock: socket.socket, announce: Callable[[Version, str], None] = lambda *_: None
) -> int:
    """Serves until a signal; returns the exit code. Call it in the main thread.

    Args:
        announce: is called with the first version and the address when the server is ready.

    Raises:
        FoundryError: if the model cannot be loaded.
    """
    return _Life(server, keeper, sock, announce).run()


class _Life:
    def __init__(
        self, server: Running, keeper: Keeper, sock: socket.socket, announce: Callable[[Version, str], None]
    ) -> None:
        self.server, self.keeper, self.sock, self.announce = server, keeper, sock, announce
        self.address = url(server.config.host, sock.getsockname()[1])
        self.failure: BaseException | None = None
        self.cut = 0
        self._stopped = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event | None = None
        self._loader = threading.Thread(target=self._load, name="loader", daemon=True)

    def run(self) -> int:
        stop = _Stop(self._stop)
        old = {s: signal.signal(s, stop) for s in (signal.SIGTERM, signal.SIGINT)}
        try:
            allow_connections(self.server.config)
            self._loader.start()
            with asyncio.Runner() as runner:
                runner.get_loop()
                signal.signal(signal.SIGINT, stop)  # the runner's own handler would cancel the main task
                runner.run(self._main())
            return self._end()
        finally:
            for s, handler in old.items():
                signal.signal(s, handler)

    def _load(self) -> None:
        try:
            version = self.keeper.load()
            if not self._stopped.is_set():
                self.announce(version, self.address)
                self.keeper.start()
        except BaseException as e:
            self.failure = e
            self._stop()

    def _stop(self) -> None:
        """Begins to stop; callable from a signal handler and from any thread."""
        self._stopped.set()
        self.server.stopping = True
        if self._loop and self._wake:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._wake.set)

    async def _main(self) -> None:
        import uvicorn

        from foundry.serving.app import build_app
        from foundry.serving.connection import Connection

        class Server(uvicorn.Server):
            @contextlib.contextmanager
            def capture_signals(self) -> Iterator[None]:
                yield

        config = self.server.config
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        settings = uvicorn.Config(
            _closing(build_app(self.server), self.server),
            http=Connection.limited(config),
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=config.idle_seconds,  # type: ignore[arg-type]
            h11_max_incomplete_event_size=config.max_header_bytes,
        )
        web = Server(settings)
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        if self._stopped.is_set():
            self._wake.set()
        self.server.connections = lambda: len(web.server_state.connections)
        serving = asyncio.create_task(web.serve(sockets=[self.sock]))
        stopping = asyncio.create_task(self._wake.wait())
        await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not serving.done():
            settings.timeout_graceful_shutdown = await self._drain()  # type: ignore[assignment]
            web.should_exit = True
        await serving

    async def _drain(self) -> float:
        """Waits for running requests; returns the seconds that are left for their last bytes."""
        loop, models = asyncio.get_running_loop(), self.server.models
        end = loop.time() + self.server.config.grace_seconds
        if n := models.requests:
            get_logger().info(
                "stopping: %d running requests get %g s to finish; a second signal stops at once",
                n,
                self.server.config.grace_seconds,
            )
        while models.requests and loop.time() < end:
            await asyncio.sleep(0.02)
        self.cut = models.requests
        if self.cut:
            get_logger().error(
                "%d requests are cut off after %g s (serving.grace_seconds)",
                self.cut,
                self.server.config.grace_seconds,
            )
            await asyncio.to_thread(models.close, False)
            while models.requests and loop.time() < end + 2:
                await asyncio.sleep(0.02)
        return max(1.0, end - loop.time())

    def _end(self) -> int:
        self.keeper.close()
        self.server.models.close(drain=False)
        self.server.close()
        if isinstance(self.failure, FoundryError):
            raise self.failure
        if self.failure is not None:
            raise RuntimeError("the model could not be loaded") from self.failure
        if self._loader.is_alive():  # it is importing or reading: nothing that it does is wanted any more
            sys.stdout.flush()
            os._exit(0)
        get_logger().info("stopped")
        return 1 if self.cut else 0
