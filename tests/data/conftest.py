"""Fixtures of the data room: a web server that misbehaves on request, raw folders and parameters made in code."""

import http.server
import json
import random
import socket
import struct
import sys
import threading
from dataclasses import dataclass, field

import pytest

SYLLABLES = ["ba", "ce", "di", "fo", "gu", "ka", "le", "mi", "no", "pu", "ra", "se", "ti", "vo", "wu"]
VOCABULARY = [a + b for a in SYLLABLES for b in ("n", "l", "r", "s", "t", "x", "nd", "st")]


@pytest.fixture(scope="session")
def story():
    """Makes reproducible text without repetition: two seeds share 5 words in a row only by rare chance."""

    def make(seed, words=60):
        rng = random.Random(seed)
        return " ".join(rng.choice(VOCABULARY) for _ in range(words)).capitalize() + "."

    return make


@dataclass
class Site:
    """What the server serves, how the next requests go wrong, and what was requested."""

    files: dict = field(default_factory=dict)  # path -> bytes
    plan: list = field(default_factory=list)  # behaviour of the next requests; later ones succeed
    requests: list = field(default_factory=list)
    sent: int = 0
    etag: str | None = '"one"'
    headers: dict = field(default_factory=dict)
    ignores_if_range: bool = False
    url: str = ""
    closed: threading.Event = field(default_factory=threading.Event)


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_GET(self):
        site = self.server.site
        site.requests.append((self.path, dict(self.headers)))
        act = site.plan.pop(0) if site.plan else "well"
        if callable(act):
            act = act(site) or "well"
        if isinstance(act, tuple):
            return self.answer(act[0], b"", act[1])
        data = site.files.get(self.path)
        if data is None:
            return self.answer(404, b"gone", {})
        headers = dict(site.headers)
        if site.etag:
            headers["ETag"] = site.etag
            if self.headers.get("If-None-Match") == site.etag:
                return self.answer(304, None, headers)
        asked = self.headers.get("Range")
        current = site.ignores_if_range or self.headers.get("If-Range") in (None, site.etag)
        status, body = 200, data
        if asked and current and act not in ("no ranges", "cut, no ranges"):
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            start += act == "wrong range"
            status, body = 206, data[start:]
            end = len(data) if act != "half range" else (start + len(data)) // 2
            body = data[start:end]
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        return self.answer(status, body, headers, cut=str(act).startswith("cut"), fault=act)

    def answer(self, status, body, headers, cut=False, fault=None):
        """`fault`: announces another length, resets the connection, or falls silent in the middle."""
        if fault in ("short", "long", "huge", "reset", "stall"):
            announced = {"short": len(body) // 2, "long": len(body) + 100, "huge": 10**18}.get(fault, len(body))
            self.send_response(status)
            for k, v in {**headers, "Content-Length": str(announced)}.items():
                self.send_header(k, v)
            self.end_headers()
            part = body[: len(body) // 2] if fault in ("reset", "stall") else body
            self.wfile.write(part)
            self.wfile.flush()
            self.server.site.sent += len(part)
            self.close_connection = True
            if fault == "stall":
                self.server.site.closed.wait(5)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
            return
        self.send_response(status)
        for k, v in headers.items():
            self.send_header(k, v)
        chunked = fault == "cut chunked"
        if chunked:
            self.send_header("Transfer-Encoding", "chunked")
        elif body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if body:
            part = body[: len(body) // 2] if cut else body
            self.wfile.write(b"%x\r\n%b\r\n" % (len(part), part) if chunked else part)
            self.server.site.sent += len(part)
        if cut:
            self.wfile.flush()
            self.close_connection = True


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):  # a client that went away is part of the tests
            super().handle_error(request, client_address)


@pytest.fixture
def site():
    server = Server(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.site = Site(url=f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server.site
    server.site.closed.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def project(tmp_path, monkeypatch):
    """An empty project folder, which is the current one; its name has a space, a bracket and a letter beyond ASCII."""
    folder = tmp_path / "my [é] project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    return folder


@pytest.fixture(scope="session")
def write_jsonl():
    def write(path, texts):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts), encoding="utf-8")

    return write


@pytest.fixture
def corpus(project, story, write_jsonl):
    """300 documents in two files: good ones, and some that each rule drops."""
    good = [story(i, 60) for i in range(240)]
    rng = random.Random(1)
    near = [" ".join(w if k != 30 else "changed" for k, w in enumerate(t.split())) for t in good[:20]]
    texts = [*good, *near, *(t.upper() for t in good[20:30]), *["too short"] * 10]
    texts += ["\n".join(["one and the same line"] * 20)] * 1 + ["buy now cheap " * 20, "= + < > | ~ " * 30]
    rng.shuffle(texts)
    write_jsonl(project / "corpus/a.jsonl", texts[:150])
    write_jsonl(project / "corpus/b.jsonl", texts[150:])
    with open(project / "corpus/b.jsonl", "ab") as f:
        f.write(b'{"text": "broken\n')
    return project
