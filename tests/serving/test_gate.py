"""What is checked before a route, and what is in the log: hosts, origins, readiness, and no text of a prompt."""

import json
import logging

import httpx
from small_server import SmallServer, listening, wait_for


def test_a_server_that_is_loading_says_so():
    with listening(SmallServer(None)) as url, httpx.Client(base_url=url) as http:
        assert http.get("/health").status_code == 200 and http.get("/v1/models").json()["data"] == []
        for response in (http.get("/ready"), http.post("/v1/completions", json={"prompt": "a"})):
            assert response.status_code == 503 and response.headers["retry-after"] == "1"
            assert response.json()["error"]["message"] == "the model is being loaded"


def test_other_names_of_this_machine_need_a_key(version):
    with listening(SmallServer(version)) as url, httpx.Client(base_url=url) as http:
        for host in ("localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80", "127.9.9.9"):
            assert http.get("/v1/models", headers={"Host": host}).status_code == 200, host
        for host in ("evil.com", "localhost.evil.com", "127.0.0.1.evil.com:80", "10.0.0.1", "[::2]", "", "x:y:z"):
            response = http.get("/v1/models", headers={"Host": host})
            assert response.status_code == 403 and response.json()["error"]["code"] == "unknown_host", host


def test_pages_of_other_origins_are_admitted_by_name_only(version):
    origin, evil = {"Origin": "https://app.example.org"}, {"Origin": "https://evil.example.org"}
    ask = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}
    with listening(SmallServer(version)) as url, httpx.Client(base_url=url) as http:
        for headers in (origin, evil):
            assert "access-control-allow-origin" not in http.get("/v1/models", headers=headers).headers
            assert http.options("/v1/completions", headers={**headers, **ask}).status_code == 405
    with (
        listening(SmallServer(version, cors_origins=["https://app.example.org"])) as url,
        httpx.Client(base_url=url) as http,
    ):
        good = http.options("/v1/completions", headers={**origin, **ask})
        assert good.status_code == 200 and good.headers["access-control-allow-origin"] == origin["Origin"]
        assert http.options("/v1/completions", headers={**evil, **ask}).status_code == 400
        answer = http.post("/v1/completions", json={"prompt": "a"}, headers=origin)
        assert answer.headers["access-control-allow-origin"] == origin["Origin"]
        assert "X-Foundry-Model" in answer.headers["access-control-expose-headers"]
        assert "access-control-allow-origin" not in http.get("/v1/models", headers=evil).headers
        wrong = http.post("/v1/completions", json={"prompt": 5}, headers=origin)
        assert wrong.status_code == 400 and wrong.headers["access-control-allow-origin"] == origin["Origin"]


def test_the_log_has_no_text_of_a_prompt(url, server, caplog):
    logger = logging.getLogger("foundry")
    propagate, logger.propagate = logger.propagate, True
    try:
        with caplog.at_level(logging.DEBUG), caplog.at_level(logging.DEBUG, "foundry"):
            httpx.post(f"{url}/v1/completions", json={"prompt": "sesame", "max_tokens": 2})
            httpx.post(f"{url}/v1/completions", json={"prompt": "sesame", "stop": ["sesame" * 99]})
            httpx.post(
                f"{url}/v1/completions", content=b'{"prompt": "sesame', headers={"Content-Type": "application/json"}
            )
            httpx.get(f"{url}/v1/models/sesame")
            httpx.get(f"{url}/sesame?sesame=sesame")
            httpx.get(f"{url}/health", headers={"X-Request-Id": "sesame open"})
            wait_for(lambda: sum("404" in r.getMessage() for r in caplog.records) >= 2)
    finally:
        logger.propagate = propagate
    text = "\n".join(r.getMessage() for r in caplog.records if r.name.startswith(("foundry", "uvicorn", "asyncio")))
    assert "/v1/completions 200" in text and "seed" in text and "sesame" not in text


def test_the_interface_is_described(url):
    document = httpx.get(f"{url}/openapi.json").json()
    text = json.dumps(document)
    for name in set(part.split('"')[0] for part in text.split("#/components/schemas/")[1:]):
        assert name in document["components"]["schemas"], name
    fields = document["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"prompt", "top_n_sigma", "past_context"} <= set(fields) and "paths" in document
    assert set(document["paths"]) >= {"/v1/models", "/v1/completions", "/v1/chat/completions", "/tokenize", "/metrics"}


def test_what_a_client_invents_does_not_reach_the_metrics(url, server):
    """Otherwise each new method or path would stay in memory."""
    for method, path in (("BREW", "/health"), ("BREW2", "/x1"), ("GET", "/x2"), ("GET", "/v1/models/x3")):
        httpx.request(method, f"{url}{path}")
    wait_for(lambda: server.observer.responses[-1] == ("GET", "/v1/models/{name:path}", 404))
    assert server.observer.responses[-4:-1] == [
        ("other", "/health", 405),
        ("other", "unknown", 404),
        ("GET", "unknown", 404),
    ]
