"""Metrics in the text format of Prometheus, in a registry of their own.

Counters and histograms grow with what the routes report; gauges are read from the loaded versions when they are asked
for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric

from foundry.serving.interface import Exchange
from foundry.serving.version import Version

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """What happened since the start, and what is now.

    Args:
        versions: the loaded ones, the one that takes new requests first.
        connections: how many are open.
    """

    def __init__(self, versions: Callable[[], Sequence[Version]], connections: Callable[[], int]) -> None:
        self._versions, self._connections = versions, connections
        self.registry = CollectorRegistry(auto_describe=False)
        ProcessCollector(registry=self.registry)

        def counter(name: str, text: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"foundry_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, labels: Sequence[str] = ()) -> Histogram:
            return Histogram(f"foundry_{name}_seconds", text, labels, buckets=SECONDS, registry=self.registry)

        self._responses = counter("http_responses", "Responses of all routes", ("method", "route", "status"))
        self._response_seconds = histogram("http_response", "Time from a request's arrival to its end", ("route",))
        self._requests = counter("requests", "Requests for text that are over", ("route", "status"))
        self._answers = counter("answers", "Answers that are over, by the reason of their end", ("reason",))
        self._prompt = counter("prompt_tokens", "Tokens of prompts, those from the cache included")
        self._cached = counter("cached_prompt_tokens", "Tokens of prompts that came from the cache")
        self._completion = counter("completion_tokens", "Tokens that were generated")
        self._first = histogram("time_to_first_token", "Time from a request's arrival to its first token")
        self._next = histogram("time_between_tokens", "Time between two tokens of an answer")
        self._changes = counter("model_changes", "Changes of the served model", ("kind",))
        self._lost = counter("recording_errors", "Exchanges that could not be recorded or traced", ("where",))
        self.registry.register(self)

    def responded(self, method: str, route: str, status: int, seconds: float) -> None:
        """A response of any route is over."""
        self._responses.labels(method, route, status).inc()
        self._response_seconds.labels(route).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Time to first token."""
        self._first.observe(seconds)

    def next_tokens(self, seconds: float, tokens: int) -> None:
        """Time between tokens; several that came together share it."""
        for _ in range(tokens):
            self._next.observe(seconds / tokens)

    def exchanged(self, exchange: Exchange) -> None:
        """A request for text is over."""
        self._requests.labels(exchange.route, exchange.status).inc()
        for answer in exchange.answers:
            self._answers.labels(answer.reason).inc()
        self._prompt.inc(exchange.prompt_tokens)
        self._cached.inc(exchange.cached_tokens)
        self._completion.inc(exchange.completion_tokens)

    def changed(self, kind: str) -> None:
        """The served model changed, or could not be changed (`foundry.serving.keeper.Change`)."""
        self._changes.labels(kind).inc()

    def not_recorded(self, where: str) -> None:
        """An exchange could not be kept."""
        self._lost.labels(where).inc()

    def collect(self) -> Iterator[Metric]:
        """The gauges; prometheus_client calls it."""
        versions = list(self._versions())

        def gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"foundry_{name}", text, value=value)

        stats = [v.backend.stats() for v in versions]
        yield gauge("connections", "Open connections", self._connections())
        yield gauge(
            "versions_loaded", "Loaded versions: one, and those that still answer after a change", len(versions)
        )
        yield gauge("requests_running", "Answers that are being generated", sum(s.running for s in stats))
        yield gauge("requests_waiting", "Answers that wait for a place", sum(s.waiting for s in stats))
        yield gauge("places", "Answers that can be generated at the same time", sum(s.slots for s in stats))
        yield gauge("queue_size", "Answers that may wait", sum(s.queue for s in stats))
        yield gauge("cache_tokens", "Tokens in the key/value cache", sum(s.cache_tokens for s in stats))
        yield gauge("cache_size_tokens", "Tokens that fit the key/value cache", sum(s.cache_size for s in stats))
        yield gauge("drafted_tokens", "Tokens that speculation proposed", sum(s.drafted for s in stats))
        yield gauge(
            "accepted_tokens", "Tokens that speculation proposed and the model took", sum(s.accepted for s in stats)
        )
        info = InfoMetricFamily("foundry_model", "The version that takes new requests")
        loaded = GaugeMetricFamily("foundry_model_loaded_timestamp_seconds", "When it began to serve, in Unix time")
        score = GaugeMetricFamily("foundry_model_bits_per_byte", "Its bits per byte on the test text")
        if versions:
            f = versions[0].facts
            info.add_metric(
                (),
                {
                    "name": versions[0].name,
                    "version": f.version or "",
                    "fingerprint": f.fingerprint,
                    "weights_sha256": f.weights_sha256,
                    "weights": f.weights,
                    "backend": f.backend,
                },
            )
            loaded.add_metric((), versions[0].loaded)
            if f.bits_per_byte:
                score.add_metric((), f.bits_per_byte.value)
        yield from (info, loaded, score)

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self.registry)
