"""A server of a tiny model on loopback: the real routes, the real engine, uvicorn in a thread."""

import asyncio
import contextlib
import socket
import threading
import time
from contextlib import contextmanager

import uvicorn

from foundry.config.serving import Serving
from foundry.serving.app import build_app
from foundry.serving.connection import Connection
from foundry.serving.errors import ApiError, unavailable, unknown_model
from foundry.serving.keys import Keys
from foundry.serving.version import Facts, Version


class Notes:
    """An observer that remembers."""

    def __init__(self):
        self.responses, self.exchanges, self.first, self.gaps = [], [], [], []

    def responded(self, method, route, status, seconds):
        self.responses.append((method, route, status))

    def first_token(self, seconds):
        self.first.append(seconds)

    def next_tokens(self, seconds, tokens):
        self.gaps.append((seconds, tokens))

    def exchanged(self, exchange):
        self.exchanges.append(exchange)


class SmallServer:
    """Implements `foundry.serving.interface.Server` for one model that is there already, or for none."""

    def __init__(self, version=None, keys=None, **config):
        self.config, self.keys, self.observer = Serving(**config), keys or Keys(), Notes()
        self.version, self.held, self.ratings = version, 0, []

    @contextmanager
    def hold(self, model):
        if self.version is None:
            raise unavailable("the model is being loaded")
        if model is not None and not self.version.answers_to(model):
            raise unknown_model(model, [self.version.name])
        self.held += 1
        try:
            yield self.version
        finally:
            self.held -= 1

    def versions(self):
        return [self.version] if self.version else []

    def unready(self):
        return None if self.version else "the model is being loaded"

    def feedback(self, *given):
        if self.config.record is None:
            raise ApiError(404, "this server does not record", code="not_recorded")
        self.ratings.append(given)

    def metrics(self):
        return b"# TYPE foundry_up gauge\nfoundry_up 1\n"


def facts_of(model, tokenizer, **changes):
    facts = {
        "source": "tiny",
        "fingerprint": "f" * 16,
        "weights_sha256": "a" * 64,
        "tokenizer_sha256": tokenizer.sha256,
        "context_length": model.cfg.max_seq_len,
        "vocabulary": model.cfg.vocab_size,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    return Facts(**{**facts, **changes})


def version_of(model, tokenizer, backend, **facts):
    return Version("tiny", backend, tokenizer, facts_of(model, tokenizer, **facts), 1_700_000_000, ("models:/tiny@x",))


@contextmanager
def engine(model, tokenizer, slots=8, queue=64):
    """A backend with the real engine in a thread."""
    from foundry.inference.engine import Engine
    from foundry.inference.runner import Runner
    from foundry.inference.worker import Worker

    worker = Worker(Engine(Runner(model, slots), tokenizer), queue)
    try:
        yield worker
    finally:
        worker.close(drain=False)


@contextmanager
def listening(server):
    """Serves on a free port of loopback; gives the address `http://127.0.0.1:PORT`."""
    config = server.config
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    settings = uvicorn.Config(
        build_app(server),
        http=Connection.limited(config),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_keep_alive=int(config.idle_seconds),
        h11_max_incomplete_event_size=config.max_header_bytes,
    )
    running = uvicorn.Server(settings)
    thread = threading.Thread(target=lambda: asyncio.run(running.serve([sock])), daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"
    finally:
        running.should_exit = True
        running.force_exit = True
        thread.join(10)
        with contextlib.suppress(OSError):
            sock.close()


def wait_for(condition, seconds=20):
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError("it did not happen")
        time.sleep(0.005)
