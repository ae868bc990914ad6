"""Clients that vanish, wait, read slowly or never finish sending cost nothing lasting; limits of time and number."""

import contextlib
import json
import socket
import threading
import time

import httpx
import openai
import pytest
from small_server import SmallServer, engine, listening, version_of, wait_for
from text_backend import TextBackend, Ticket

from foundry.inference.request import ClosedError, Delta, Finished, Scored

LONG = {"prompt": "salt", "max_tokens": 4000, "past_context": "slide", "logit_bias": {"2": -100}}  # 2: the end


def connect(url):
    s = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
    s.settimeout(20)
    return s


def head(line, *headers):
    return "\r\n".join([f"{line} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


JSON = "Content-Type: application/json"


def post(body, path="/v1/completions"):
    data = json.dumps(body).encode()
    return head(f"POST {path}", JSON, f"Content-Length: {len(data)}") + data


def all_of(s):
    """What the server sends until it closes the connection, in order or not."""
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := s.recv(65536):
            found += part
    return found


def healthy(s):
    """Whether `/health` is answered on a connection, which stays open."""
    s.sendall(head("GET /health"))
    found = b""
    while not found.endswith(b"}"):
        found += s.recv(4096)
    return found.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_cancels_its_answers_at_once(model, tokenizer, stream):
    with engine(model, tokenizer) as backend:
        server = SmallServer(version_of(model, tokenizer, backend))
        with listening(server) as url:
            with connect(url) as s:
                s.sendall(post({**LONG, "n": 3, "stream": stream}))
                wait_for(lambda: backend.stats().running == 3)
                assert not stream or s.recv(10)
            wait_for(lambda: backend.stats().running == 0 and server.observer.exchanges)
    exchange = server.observer.exchanges[0]
    assert exchange.status == 499 and server.held == 0 and exchange.completion_tokens < 4000
    assert {a.reason for a in exchange.answers} == {"cancelled"}
    assert ("POST", "/v1/completions", 499) in server.observer.responses


def test_a_client_that_does_not_read_is_disconnected(model, tokenizer):
    """Its answer fits no buffer of the operating system."""
    server, backend = with_backend(model, tokenizer)
    server.config = server.config.model_copy(update={"write_seconds": 0.3})
    tickets = []

    def submit(request, listener):
        tickets.append(Ticket(1))

        def flood():
            for _ in range(2000):
                if tickets[0].cancelled.is_set():
                    return
                listener(Delta("x" * 100_000, (Scored(5),)))
                time.sleep(0.001)

        threading.Thread(target=flood, daemon=True).start()
        return tickets[0]

    backend.submit = submit
    with listening(server) as url, connect(url) as s:
        s.sendall(post({**LONG, "stream": True}))
        wait_for(lambda: server.observer.exchanges)
        assert tickets[0].cancelled.is_set() and b"[DONE]" not in all_of(s)
    assert server.observer.exchanges[0].status == 499 and server.held == 0


@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"GET /health HTTP/1.1\r\nHost: localhost\r\n"])
def test_headers_that_never_end_end_the_connection(version, sent):
    with listening(SmallServer(version, header_seconds=0.3)) as url, connect(url) as s:
        s.sendall(sent)
        assert all_of(s) == b""


def test_a_second_request_that_never_ends_ends_the_connection(version):
    with listening(SmallServer(version, header_seconds=0.5)) as url, connect(url) as s:
        assert healthy(s)
        s.sendall(b"GET /hea")
        assert all_of(s) == b""


def test_an_idle_connection_lives_longer_than_headers_may_take(version):
    with listening(SmallServer(version, header_seconds=0.2)) as url, connect(url) as s:
        for _ in range(2):
            assert healthy(s)
            time.sleep(0.5)


def test_a_body_that_never_ends_gets_408(version):
    with listening(SmallServer(version, body_seconds=0.3)) as url, connect(url) as s:
        s.sendall(post(LONG)[:-5])
        answer = all_of(s)
    assert answer.startswith(b"HTTP/1.1 408") and b"did not arrive" in answer


def test_a_refused_body_that_never_ends_ends_the_connection(version, monkeypatch):
    monkeypatch.setattr("foundry.serving.connection.MARGIN", 0.1)
    with listening(SmallServer(version, body_seconds=0.3, max_body_bytes=2048)) as url, connect(url) as s:
        s.sendall(head("POST /tokenize", JSON, "Content-Length: 99999999"))
        s.sendall(b"x" * 1000)
        assert s.recv(100).startswith(b"HTTP/1.1 413")
        end = time.monotonic() + 20
        with pytest.raises((ConnectionResetError, BrokenPipeError)):
            while time.monotonic() < end:
                s.sendall(b"x" * 1000)
                time.sleep(0.02)


def test_requests_on_one_connection_are_answered_in_their_order(version):
    with listening(SmallServer(version)) as url, connect(url) as s:
        s.sendall(post({"prompt": "a", "max_tokens": 2}) * 3 + head("GET /health", "Connection: close"))
        answer = all_of(s)
    assert (
        answer.count(b"HTTP/1.1 200") == 4
        and answer.count(b"text_completion") == 3
        and answer.endswith(b'{"status":"ok"}')
    )


def test_too_many_connections_are_refused(version):
    with listening(SmallServer(version, max_connections=2)) as url:
        with connect(url) as a, connect(url) as b:
            for s in (a, b):
                assert healthy(s)
            with connect(url) as c:
                answer = all_of(c)
        assert answer.startswith(b"HTTP/1.1 503") and b"too many connections" in answer
        wait_for(lambda: httpx.get(f"{url}/health").status_code == 200)


def test_a_full_queue_says_when_to_come_back(model, tokenizer):
    with engine(model, tokenizer, slots=1, queue=1) as backend:
        server = SmallServer(version_of(model, tokenizer, backend))
        with listening(server) as url, connect(url) as first, connect(url) as second:
            first.sendall(post(LONG))
            wait_for(lambda: backend.stats().running == 1)
            second.sendall(post(LONG))
            wait_for(lambda: backend.stats().waiting == 1)
            response = httpx.post(f"{url}/v1/completions", json=LONG)
            assert response.status_code == 429 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["code"] == "queue_full"
            many = httpx.post(f"{url}/v1/completions", json={**LONG, "n": 5})
            assert many.status_code == 400 and "2 places" in many.json()["error"]["message"]
        wait_for(lambda: backend.stats().running == 0)


def test_time_is_limited_and_what_was_written_is_kept(model, tokenizer):
    with engine(model, tokenizer, slots=1) as backend:
        server = SmallServer(version_of(model, tokenizer, backend), request_seconds=0.5)
        with listening(server) as url:
            choice = httpx.post(f"{url}/v1/completions", json=LONG).json()["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "timeout") and len(choice["text"]) > 10


@pytest.mark.parametrize("stream", [True, False])
def test_an_answer_that_never_began_is_a_503(model, tokenizer, stream):
    server, backend = with_backend(model, tokenizer)
    backend.submit = at_once(Finished("timeout", prompt_tokens=2))
    with listening(server) as url:
        response = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "stream": stream})
    assert response.status_code == 503 and response.headers["retry-after"] and "overloaded" in response.text


def at_once(*events):
    """The method `submit` of a backend that has these events ready."""

    def submit(request, listener):
        for event in events:
            listener(event)
        return Ticket(1)

    return submit


def with_backend(model, tokenizer):
    backend = TextBackend(tokenizer)
    return SmallServer(version_of(model, tokenizer, backend)), backend


def test_a_failure_of_the_engine_has_no_reason_for_the_client(model, tokenizer):
    server, backend = with_backend(model, tokenizer)
    reason = "RuntimeError: /home/me/secret.py line 5"

    def submit(request, listener):
        def fail_later():
            listener(Delta("The", (Scored(5, -1.0),)))
            wait_for(lambda: server.observer.first)
            time.sleep(0.1)
            listener(Finished("error", message=reason))

        threading.Thread(target=fail_later, daemon=True).start()
        return Ticket(1)

    backend.submit = submit
    with listening(server) as url, openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=0) as client:
        whole = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
        server.observer.first.clear()
        streamed = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True})
        server.observer.first.clear()
        with pytest.raises(openai.APIError, match="the server failed"):
            list(client.completions.create(model="tiny", prompt="a", stream=True))
    assert whole.status_code == 500 and whole.json()["error"]["type"] == "server_error"
    assert whole.headers["x-request-id"] in whole.text and "secret" not in whole.text + streamed.text
    assert streamed.status_code == 200 and '"text":"The"' in streamed.text
    assert streamed.text.split("\n\n")[1].startswith('data: {"error": ') and streamed.text.endswith("[DONE]\n\n")


def test_a_bug_is_a_500_without_a_traceback(model, tokenizer):
    server, backend = with_backend(model, tokenizer)

    def broken(request, listener):
        raise RuntimeError("/home/me/secret.py")

    backend.submit = broken
    with listening(server) as url:
        response = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
        assert response.status_code == 500 and set(response.json()) == {"error"} and "secret" not in response.text
        backend.submit = lambda request, listener: (_ for _ in ()).throw(ClosedError("closing"))
        closed = httpx.post(f"{url}/v1/completions", json={"prompt": "a"})
        assert closed.status_code == 503 and closed.headers["retry-after"]
    assert server.held == 0


def test_events_that_come_together_are_joined(model, tokenizer):
    server, backend = with_backend(model, tokenizer)

    parts = [Delta(text, (Scored(5, -1.0),)) for text in ("a", "", "b", "c")]
    backend.submit = at_once(*parts, Finished("stop", 2, 3, 4))
    with listening(server) as url:
        lines = httpx.post(f"{url}/v1/completions", json={"prompt": "a", "stream": True}).text.split("\n\n")
    assert len(lines) == 4 and '"text":"abc"' in lines[0] and '"finish_reason":"stop"' in lines[1]
    assert lines[2:] == ["data: [DONE]", ""]
