"""Whatever a client sends, it gets OpenAI's error object with the right status, and never a 500."""

import json
import socket

import httpx
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_server import SmallServer, listening, wait_for

JSON = {"Content-Type": "application/json"}
ROUTES = ["/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"]


@pytest.fixture(scope="module")
def http(url):
    with httpx.Client(base_url=url, timeout=60) as http:
        yield http


def refused(response, status=400):
    """The error object of a response, after its form was checked."""
    assert response.status_code == status, (response.status_code, response.text[:300])
    body = response.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "param", "code"}
    assert response.headers["content-type"] == "application/json" and response.headers["x-request-id"]
    assert isinstance(body["error"]["message"], str) and 0 < len(body["error"]["message"]) < 600
    return body["error"]


DEEP = {"deep lists": b"[" * 100_000, "deep objects": b'{"a":' * 100_000, "40 levels": b'{"a":' * 40 + b"1" + b"}" * 40}
BODIES = {
    "empty": b"",
    "cut off": b'{"prompt": "a',
    "not JSON": b"prompt=a",
    "a list": b"[1]",
    "a number": b"5",
    "null": b"null",
    "invalid UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "a"}'.encode("utf-16"),
    "a byte order mark": b'\xef\xbb\xbf{"prompt": "a"}',
    "NaN": b'{"prompt": "a", "temperature": NaN}',
    "infinity": b'{"prompt": "a", "temperature": -Infinity}',
    "overflow": b'{"prompt": "a", "temperature": 1e999}',
    "many digits": b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"prompt": "a", "prompt": "b"}',
    "a key twice inside": b'{"prompt": "a", "logit_bias": {"5": 1, "5": 2}}',
    "half a surrogate pair": rb'{"prompt": "\ud83d"}',
    "half a pair in a key": rb'{"\udc00": 1}',
    "trailing text": b'{"prompt": "a"} {}',
    "a control character": b'{"prompt": "a\nb"}',
    **DEEP,
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("name", BODIES)
def test_a_malformed_body_is_refused(http, route, name):
    error = refused(http.post(route, content=BODIES[name], headers=JSON))
    assert error["type"] == "invalid_request_error" and "body" in error["message"]


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["prompt", "messages", "tokens", "n", "stop", "seed", "logit_bias", "max_tokens", "temperature", "top_k"]
FIELDS += [
    "model",
    "stream",
    "response_format",
    "logprobs",
    "echo",
    "best_of",
    "bad_words",
    "min_tokens",
    "tools",
    "suffix",
]


@settings(max_examples=250, deadline=None)
@given(route=st.sampled_from(ROUTES), body=st.dictionaries(st.sampled_from(FIELDS), JSON_VALUES, max_size=4))
def test_no_object_makes_the_server_fail(http, route, body):
    response = http.post(route, content=json.dumps(body), headers=JSON)
    if response.status_code != 200:
        refused(response, response.status_code)
        assert response.status_code in (400, 404)


@settings(max_examples=100, deadline=None)
@given(route=st.sampled_from(ROUTES), body=st.binary(max_size=60))
def test_no_bytes_make_the_server_fail(http, route, body):
    refused(http.post(route, content=body, headers=JSON))


BOMBS = {
    "a million stop texts": {"prompt": "a", "stop": ["a"] * 200_000},
    "a million numbers for stop texts": {"prompt": "a", "stop": [1] * 400_000},
    "a million stop ids": {"prompt": "a", "stop_token_ids": [5] * 400_000},
    "a million prompts": {"prompt": ["a"] * 200_000},
    "a million empty prompts": {"prompt": [[]] * 300_000},
    "a million wrong prompts": {"prompt": [None] * 200_000},
    "a million wrong messages": {"messages": [5] * 400_000},
    "a million messages": {"messages": [{"role": "user", "content": "a" * 20}] * 20_000},
    "a million parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 30_000 + [5]}]},
    "a million biases": {"prompt": "a", "logit_bias": {str(i): 1 for i in range(80_000)}},
    "a million bad words": {"prompt": "a", "bad_words": ["a"] * 200_000},
    "a long bad word": {"prompt": "a", "bad_words": ["a" * 900_000]},
    "a bad word of many tokens": {"prompt": "a", "bad_words": [[5] * 200_000]},
    "a million fields": {f"x{i}": 1 for i in range(80_000)},
    "a long prompt": {"prompt": "a" * 900_000},
    "a long model": {"prompt": "a", "model": "m" * 900_000},
    "a long name": {"prompt": "a", "x" * 900_000: 1},
    "a long seed": {"prompt": "a", "seed": int("9" * 300)},
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_with_a_short_message(http, asked, name):
    route = "/v1/chat/completions" if "messages" in BOMBS[name] else "/v1/completions"
    refused(http.post(route, json=BOMBS[name]))
    assert not asked


ELSEWHERE = [
    *[("GET", path, 404) for path in ("/v1/nothing", "/v1/models/", "/v1/models/other", "/%ff%00", "/docs")],
    *[("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404), ("POST", "/", 405), ("GET", "/v1/completions", 405)],
    *[("DELETE", "/v1/models/tiny", 405), ("PUT", "/tokenize", 405), ("BREW", "/health", 405)],
]


@pytest.mark.parametrize(("method", "path", "status"), ELSEWHERE)
def test_an_unknown_route_or_method_is_refused(http, method, path, status):
    response = http.request(method, path)
    error = refused(response, status)
    assert error["code"] in ("unknown_route", "model_not_found")
    assert status != 405 or response.headers["allow"]


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "", None])
def test_a_body_that_a_foreign_page_could_send_is_refused(http, kind):
    headers = {} if kind is None else {"Content-Type": kind}
    error = refused(http.post("/v1/completions", content=b'{"prompt": "a"}', headers=headers), 415)
    assert "application/json" in error["message"]
    good = {"Content-Type": "Application/JSON; charset=utf-8"}
    assert http.post("/tokenize", content=b'{"prompt": "a"}', headers=good).status_code == 200


def test_a_compressed_body_is_refused(http):
    refused(http.post("/v1/completions", content=b"x", headers={**JSON, "Content-Encoding": "gzip"}), 415)


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_too_large_is_refused(http, announced):
    content = b'{"prompt": "' + b"a" * (1 << 20) + b'"}'
    error = refused(http.post("/v1/completions", content=content if announced else iter([content]), headers=JSON), 413)
    assert "serving.max_body_bytes" in error["message"] and error["code"] == "body_too_large"
    assert http.post("/tokenize", json={"prompt": "a"}).status_code == 200  # on the same connection


def test_the_client_does_not_repeat_a_mistake(url, server):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="x", max_retries=3) as client:
        before = len(server.observer.responses)
        with pytest.raises(openai.BadRequestError):
            client.completions.create(model="tiny", prompt="a", temperature=-1)
    wait_for(lambda: len(server.observer.responses) == before + 1)


def test_what_is_not_http_gets_an_error_object(url):
    wrong = b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n"
    for data in (b"\x16\x03\x01 hello\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a b\x00\r\n\r\n", wrong):
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as s:
            s.settimeout(10)
            s.sendall(data)
            answer = b"".join(iter(lambda: s.recv(65536), b""))  # until the server closes
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 400") and json.loads(body)["error"]["code"] == "invalid_http"


def test_headers_that_are_too_large_are_refused(version):
    server = SmallServer(version, max_header_bytes=4096)
    with listening(server) as url, socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as s:
        s.settimeout(10)
        s.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 2000)
        assert b"400" in s.recv(100)


ODD = ["\x00", "a\x00b", "\u2581", "\ufeff", "\U0001f600", "e\u0301", "\u202e", "<|im_end|>", "\r\n"]


@pytest.mark.parametrize("text", ODD)
def test_odd_characters_are_text(http, tokenizer, text):
    found = http.post("/tokenize", json={"prompt": text})
    assert found.status_code == 200 and found.json()["tokens"] == tokenizer.encode(text, bos=True)
    talk = [{"role": "user", "content": text}]
    for route, body in (("/v1/completions", {"prompt": text}), ("/v1/chat/completions", {"messages": talk})):
        assert http.post(route, json={**body, "max_tokens": 1, "stop": [text]}).status_code == 200


def test_tokens_and_texts(http, tokenizer, asked):
    found = http.post("/tokenize", json={"model": "tiny", "prompt": "The salt"}).json()
    assert found["tokens"] == tokenizer.encode("The salt", bos=True) and found["count"] == len(found["tokens"])
    assert found["token_strs"][0] == "<s>" and found["max_model_len"] == 96
    bare = http.post("/tokenize", json={"prompt": "The salt", "add_special_tokens": False}).json()
    assert bare["tokens"] == found["tokens"][1:]
    assert http.post("/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": "The salt"}
    assert http.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}
    talk = [{"role": "user", "content": "The salt"}]
    ids = http.post("/tokenize", json={"messages": talk}).json()["tokens"]
    http.post("/v1/chat/completions", json={"messages": talk, "max_tokens": 1})
    assert tuple(ids) == asked[0].ids
    for body in ({}, {"prompt": "a", "messages": talk}, {"prompt": 5}, {"prompt": "a", "x": 1}, {"messages": []}):
        refused(http.post("/tokenize", json=body))
    for body in ({}, {"tokens": [400]}, {"tokens": "a"}, {"tokens": [-1]}, {"tokens": [1.0]}, {"tokens": [True]}):
        assert refused(http.post("/detokenize", json=body))["param"] == "tokens"
    refused(http.post("/tokenize", json={"prompt": "a", "model": "other"}), 404)
    refused(http.post("/tokenize", json={"prompt": "a" * 500_000}))
