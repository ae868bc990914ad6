"""Traces of requests in MLflow, with prompts and answers: an opt-in (`serving.traces`).

A thread imports MLflow and sends; a request never waits for it. What MLflow does not take is lost, reported once, and
counted.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

from foundry.serving.interface import Exchange
from foundry.utils.log import get_logger

WAITING = 1000  # exchanges that may wait for MLflow


class Traces:
    """Sends every exchange as a trace into an experiment.

    Args:
        lost: is called when an exchange is lost.
    """

    def __init__(self, uri: str, experiment: str, lost: Callable[[], None] = lambda: None) -> None:
        self._uri, self._experiment, self._lost = uri, experiment, lost
        self._queue: queue.Queue[Exchange | None] = queue.Queue(WAITING)
        self._problem: str | None = None
        self._thread = threading.Thread(target=self._run, name="traces", daemon=True)
        self._thread.start()

    def exchanged(self, exchange: Exchange) -> None:
        """Has an exchange sent."""
        try:
            self._queue.put_nowait(exchange)
        except queue.Full:
            self._report(f"{WAITING} requests are waiting for MLflow")

    def close(self, seconds: float = 10.0) -> None:
        """Sends what is waiting, for some seconds."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(seconds)

    def _run(self) -> None:
        while (exchange := self._queue.get()) is not None:
            try:
                self._send(exchange)
                self._problem = None
            except Exception as e:  # MLflow raises its own errors, SQLAlchemy's and those of the network
                self._report(f"{type(e).__name__}: {e}".splitlines()[0][:300])

    def _send(self, exchange: Exchange) -> None:
        from foundry.tracking.settings import connect, experiment_id, mlflow_at

        client = connect(self._uri)
        facts = exchange.version.facts
        began = int(exchange.started * 1e9)
        with mlflow_at(self._uri):
            root = client.start_trace(
                exchange.route,
                inputs=exchange.body,
                attributes={
                    "prompt_tokens": exchange.prompt_tokens,
                    "cached_tokens": exchange.cached_tokens,
                    "completion_tokens": exchange.completion_tokens,
                },
                tags={
                    "foundry.id": exchange.id,
                    "foundry.request_id": exchange.request_id,
                    "foundry.key": exchange.key or "",
                    "foundry.model": exchange.version.name,
                    "foundry.version": facts.version or "",
                    "foundry.weights_sha256": facts.weights_sha256,
                },
                experiment_id=experiment_id(client, self._uri, self._experiment),
                start_time_ns=began,
            )
            client.end_trace(
                root.trace_id,
                outputs=[{"text": a.text, "seed": a.seed, "reason": a.reason} for a in exchange.answers],
                status="OK" if exchange.status == 200 else "ERROR",
                end_time_ns=began + int(exchange.seconds * 1e9),
            )

    def _report(self, problem: str) -> None:
        self._lost()
        if problem != self._problem:
            self._problem = problem
            get_logger().error("a request could not be traced in MLflow: %s", problem)
