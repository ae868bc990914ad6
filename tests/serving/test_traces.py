"""Traces of requests in MLflow, and what a server does when MLflow is away."""

import time

from small_server import facts_of

from foundry.serving.interface import Answer, Exchange
from foundry.serving.traces import Traces
from foundry.serving.version import Version
from foundry.tracking.settings import connect


def exchange(model, tokenizer, n=1):
    version = Version("tiny", None, tokenizer, facts_of(model, tokenizer, version="3"), 1)
    known = {"route": "/v1/completions", "key": "alice", "version": version, "stream": False, "status": 200}
    counts = {
        "prompt_tokens": 3,
        "cached_tokens": 0,
        "completion_tokens": 2,
        "accepted_tokens": 0,
        "rejected_tokens": 0,
    }
    answer = Answer(index=0, prompt=0, text="salt", seed=7, reason="stop", completion_tokens=2)
    times = {"started": time.time(), "seconds": 0.25}
    body = {"prompt": "The", "max_tokens": 2}
    return Exchange(id=f"cmpl-{n}", request_id=f"req-{n}", body=body, answers=(answer,), **known, **counts, **times)


def test_every_request_becomes_a_trace_with_its_prompt_answer_and_model(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    uri, lost = f"sqlite:///{tmp_path}/mlflow.db", []
    traces = Traces(uri, "e", lambda: lost.append(1))
    for n in (1, 2):
        traces.exchanged(exchange(model, tokenizer, n))
    traces.close(60)
    client = connect(uri)
    where = client.get_experiment_by_name("e").experiment_id
    found = client.search_traces(locations=[where])
    assert not lost and {t.info.tags["foundry.id"] for t in found} == {"cmpl-1", "cmpl-2"}
    info = found[0].info
    assert info.tags["foundry.version"] == "3" and info.tags["foundry.weights_sha256"] == "a" * 64
    assert info.execution_duration == 250 and str(info.state).endswith("OK")
    (span,) = found[0].data.spans
    assert span.inputs == {"prompt": "The", "max_tokens": 2}
    assert span.outputs == [{"text": "salt", "seed": 7, "reason": "stop"}]


def test_without_mlflow_requests_are_lost_and_counted_and_nothing_else_happens(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lost = []
    traces = Traces("http://127.0.0.1:9", "e", lambda: lost.append(1))
    for n in range(3):
        traces.exchanged(exchange(model, tokenizer, n))
    traces.close(60)
    assert len(lost) == 3
