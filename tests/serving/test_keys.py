"""API keys: who may use the server, how much, and what is never shown."""

import hashlib
import hmac
import json

import httpx
import pytest
from small_server import SmallServer, listening, wait_for

from foundry.config import ConfigError
from foundry.serving import keys as module
from foundry.serving.errors import ApiError
from foundry.serving.keys import Allowance, Key, Keys, read_keys

SECRET = "sk-secret-of-alice"


def file(tmp_path, content):
    path = tmp_path / "keys.yaml"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_keys_come_from_a_file_or_the_environment(tmp_path):
    digest = hashlib.sha256(b"sk-of-bob").hexdigest()
    entries = [{"name": "alice", "key": SECRET, "requests_per_minute": 5}, {"name": "bob", "sha256": digest}]
    keys = read_keys(file(tmp_path, {"keys": entries}), {"FOUNDRY_API_KEYS": "x=ignored-key"})
    assert keys.check(f"Bearer {SECRET}").name == "alice" and keys.check("bearer sk-of-bob").name == "bob"
    with pytest.raises(ApiError):
        keys.check("Bearer ignored-key")
    named = read_keys(None, {"FOUNDRY_API_KEYS": f" a={SECRET}\n b=another-key= "})
    assert named.check(f"Bearer {SECRET}").name == "a" and named.check("Bearer another-key=").name == "b"
    assert len(read_keys(None, {})) == 0 and read_keys(None, {}).check(None) is None


@pytest.mark.parametrize(
    "content",
    [
        "",
        "keys: []",
        "keys: [",
        "- a",
        {"keys": [{"name": "a"}]},
        {"keys": [{"name": "a", "key": "short"}]},
        {"keys": [{"name": "a", "key": SECRET + " x"}]},
        {"keys": [{"name": "a b", "key": SECRET}]},
        {"keys": [{"name": "a", "key": SECRET, "sha256": "0" * 64}]},
        {"keys": [{"name": "a", "sha256": "xyz"}]},
        {"keys": [{"name": "a", "key": SECRET, "requests_per_minute": 0}]},
        {"keys": [{"name": "a", "key": SECRET, "limit": 1}]},
        {"keys": [{"name": "a", "key": SECRET}, {"name": "a", "key": SECRET + "2"}]},
        {"keys": [{"name": "a", "key": SECRET}, {"name": "b", "key": SECRET}]},
        {"keys": [{"name": "a", "key": SECRET}, {"name": "b", "key": 5}]},
    ],
)
def test_a_broken_file_is_refused_without_showing_a_key(tmp_path, content):
    path = file(tmp_path, content)
    with pytest.raises(ConfigError) as e:
        read_keys(path, {})
    assert str(path) in str(e.value) and SECRET not in str(e.value)


def test_a_missing_file_and_a_broken_variable_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        read_keys(tmp_path / "none", {})
    for text in (SECRET, f"a={SECRET} b", "a=short"):
        with pytest.raises(ConfigError, match="FOUNDRY_API_KEYS") as e:
            read_keys(None, {"FOUNDRY_API_KEYS": text})
        assert SECRET not in str(e.value)


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer ", SECRET, f"Basic {SECRET}", f"Bearer {SECRET}x", "Bearer é"]
)
def test_a_missing_or_wrong_key_is_refused(given):
    with pytest.raises(ApiError) as e:
        read_keys(None, {"FOUNDRY_API_KEYS": f"a={SECRET}"}).check(given)
    assert e.value.status == 401 and e.value.code == "invalid_api_key" and SECRET not in str(e.value)


def test_every_key_is_compared_in_constant_time(monkeypatch):
    compared = []
    monkeypatch.setattr(module.hmac, "compare_digest", lambda a, b: compared.append(a) or hmac_equal(a, b))
    keys = read_keys(None, {"FOUNDRY_API_KEYS": f"a={SECRET} b={SECRET}2 c={SECRET}3"})
    assert keys.check(f"Bearer {SECRET}").name == "a" and len(compared) == 3
    assert {len(c) for c in compared} == {32}  # hashes: not even the length of a key shows


hmac_equal = hmac.compare_digest


def test_an_allowance_refills_evenly_and_keeps_one_minute():
    now = [0.0]
    allowance = Allowance(60, clock=lambda: now[0])
    allowance.take(60)
    assert allowance.left() == 0 and allowance.wait(1) == 1
    now[0] = 30
    assert allowance.left() == pytest.approx(30) and allowance.wait(45) == pytest.approx(15)
    now[0] = 3000
    assert allowance.left() == 60
    allowance.take(-5)
    assert allowance.left() == 60


def test_tokens_are_reserved_and_what_is_not_used_is_given_back():
    now = [0.0]
    key = Key("a", b"", None, Allowance(100, clock=lambda: now[0]))
    key.reserve(80)
    with pytest.raises(ApiError) as e:
        key.reserve(30)
    assert e.value.status == 429 and e.value.headers["Retry-After"] == "6"
    key.settle(80, 10)
    key.reserve(90)
    with pytest.raises(ApiError) as e:
        key.reserve(101)  # never possible: the answer says not to repeat it
    assert e.value.headers == {"x-should-retry": "false"}


def serving(version, **limits):
    key = Key("alice", hashlib.sha256(SECRET.encode()).digest(), **limits)
    return SmallServer(version, keys=Keys((key,)))


BEARER = {"Authorization": f"Bearer {SECRET}"}


def test_the_key_is_checked_before_the_body_and_only_health_and_the_page_are_open(version):
    server = serving(version)
    with listening(server) as url, httpx.Client(base_url=url) as http:
        assert [http.get(path).status_code for path in ("/", "/health", "/ready")] == [200, 200, 200]
        for path in (
            "/v1/models",
            "/v1/models/tiny",
            "/metrics",
            "/openapi.json",
            "/nothing",
            "/v1",
            "//health",
            "/HEALTH",
        ):
            response = http.get(f"{url}{path}")
            assert response.status_code == 401 and response.headers["www-authenticate"] == "Bearer"
            assert http.get(f"{url}{path}", headers=BEARER).status_code in (200, 404)

        def endless():
            yield b'{"prompt": "'
            raise AssertionError("the body was read")

        for path in ("/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"):
            headers = {"Content-Length": "1000000", "Content-Type": "application/json", "Expect": "100-continue"}
            request = http.build_request("POST", path, headers=headers)
            request.stream = httpx.ByteStream(b"")
            port = int(url.rpartition(":")[2])
            import socket

            with socket.create_connection(("127.0.0.1", port)) as s:  # announces a body and never sends it
                lines = [f"POST {path} HTTP/1.1", "Host: localhost", *(f"{k}: {v}" for k, v in headers.items()), "", ""]
                s.sendall("\r\n".join(lines).encode())
                s.settimeout(10)
                assert s.recv(1000).startswith(b"HTTP/1.1 401")
        two = [("Authorization", f"Bearer {SECRET}"), ("Authorization", "Bearer x")]
        assert http.get("/v1/models", headers=two).status_code == 401


def test_limits_of_a_key_over_the_network(version):
    server = serving(version, requests=Allowance(4), tokens=Allowance(50))
    body = {"prompt": "a", "max_tokens": 8}
    with listening(server) as url, httpx.Client(base_url=url, headers=BEARER) as http:
        first = http.post("/v1/completions", json=body)
        assert (
            first.headers["x-ratelimit-limit-requests"] == "4"
            and first.headers["x-ratelimit-remaining-requests"] == "3"
        )
        used = first.json()["usage"]["total_tokens"]
        assert used == 10
        wait_for(lambda: server.keys.check(BEARER["Authorization"]).tokens.left() >= 40)
        large = http.post("/v1/completions", json={**body, "max_tokens": 60})
        assert large.status_code == 429 and large.headers["x-should-retry"] == "false"
        over = http.post("/v1/completions", json={**body, "n": 5})
        assert over.status_code == 429 and 1 <= int(over.headers["retry-after"]) <= 60
        assert http.post("/v1/completions", json=body).status_code == 200
        last = http.post("/v1/completions", json=body)
        assert last.status_code == 429 and "4 requests" in last.json()["error"]["message"]
        assert last.json()["error"]["type"] == "rate_limit_error" and http.get("/health").status_code == 200
    assert server.observer.exchanges[0].key == "alice"
