"""`foundry push` against a small hub on loopback: what arrives is what was proved, and nothing else is sent."""

import base64
import hashlib
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from example_records import example_proof

from foundry.config import ExportError
from foundry.export import push
from foundry.export.manifest import hash_files, write_record
from foundry.export.proof import ExportRecord

ROOT = Path(__file__).resolve().parents[2]
LARGE = (".safetensors", ".gguf")


class Hub(ThreadingHTTPServer):
    """The part of the hub's protocol that one commit needs: plain files in the commit, large ones by LFS before it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.tokens, self.created, self.commits, self.stored = set(), [], [], {}
        self.there = [".gitattributes", "README.md", "old-f16.gguf"]

    def files(self):
        """{path: bytes} of the last commit."""
        out = {}
        for line in self.commits[-1]:
            if line["key"] == "file":
                out[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                out[line["value"]["path"]] = self.stored[line["value"]["oid"]]
        return out


class Answer(BaseHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def reply(self, value, status=200):
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self):
        if "/tree/" in self.path:
            self.reply([{"type": "file", "path": p, "size": 1, "oid": "0" * 40} for p in self.server.there])
        else:
            self.reply({"error": self.path}, 404)

    def do_PUT(self):
        self.server.stored[self.path.rsplit("/", 1)[1]] = self.body()
        self.reply({})

    def do_POST(self):
        hub, data = self.server, self.body()
        hub.tokens.add(self.headers.get("Authorization"))
        if self.headers.get("Authorization") != "Bearer secret-token":
            self.reply({"error": "Invalid username or password."}, 401)
        elif self.path == "/api/repos/create":
            hub.created.append(json.loads(data))
            self.reply({"url": f"{hub.url}/me/lm"})
        elif self.path == "/api/validate-yaml":
            self.reply({"warnings": [], "errors": []})
        elif "/preupload/" in self.path:
            names = [f["path"] for f in json.loads(data)["files"]]
            modes = {n: "lfs" if n.endswith(LARGE) else "regular" for n in names}
            self.reply({"files": [{"path": n, "uploadMode": m, "shouldIgnore": False} for n, m in modes.items()]})
        elif self.path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(data)["objects"]
            for o in objects:
                o["actions"] = {"upload": {"href": f"{hub.url}/lfs/{o['oid']}", "header": {}}}
            self.reply({"transfer": "basic", "objects": objects})
        elif "/commit/" in self.path:
            hub.commits.append([json.loads(line) for line in data.splitlines()])
            self.reply({"commitUrl": f"{hub.url}/me/lm/commit/{'a' * 40}", "commitOid": "a" * 40, "success": True})
        else:
            self.reply({"error": self.path}, 404)


@pytest.fixture
def hub():
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path):
    """An export that `verify_export` accepts; the content of its files does not matter here."""
    out = tmp_path / "artifacts/export"
    (out / "hf").mkdir(parents=True)
    for name, data in (
        ("hf/model.safetensors", b"weights" * 999),
        ("hf/config.json", b"{}"),
        ("hf/README.md", b"---\nlicense: mit\n---\n# lm\n"),
        ("lm-q8_0.gguf", b"GGUF" * 99),
    ):
        (out / name).write_bytes(data)
    hashes = {
        name: digit * 64
        for name, digit in zip(("index_sha256", "tokenizer_sha256", "weights_sha256"), "123", strict=True)
    }
    record = ExportRecord(model_name="lm", fingerprint="f" * 16, **hashes, proof=example_proof(), files=hash_files(out))
    write_record(out, record)
    return out


def command(folder, hub, *args, token="secret-token"):
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING"))}
    env = {
        **kept,
        "PYTHONPATH": str(ROOT),
        "HF_ENDPOINT": hub.url,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(folder.parents[1] / "home"),
    }
    env |= {"HF_TOKEN": token} if token else {}
    env |= {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run(
        [sys.executable, "-m", "foundry.cli", "push", *args],
        cwd=folder.parents[1],
        env=env,
        capture_output=True,
        text=True,
    )


def test_what_arrives_is_what_was_proved_in_one_commit(folder, hub):
    done = command(folder, hub, "me/lm", "--private")
    assert done.returncode == 0, done.stderr
    expected = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert hub.files() == expected and len(expected) == 5 and len(hub.commits) == 1
    assert hub.created == [{"name": "lm", "organization": "me", "visibility": "private"}]
    assert [x["value"]["path"] for x in hub.commits[0] if x["key"] == "deletedFile"] == ["old-f16.gguf"]
    assert "f" * 16 in hub.commits[0][0]["value"]["summary"] and f"/commit/{'a' * 40}" in done.stdout
    assert all(hashlib.sha256(data).hexdigest() == oid for oid, data in hub.stored.items()) and len(hub.stored) == 2
    assert "secret-token" not in done.stdout + done.stderr


def test_a_changed_export_stays_here(folder, hub):
    (folder / "lm-q8_0.gguf").write_bytes(b"GGUF" * 98 + b"GGUE")
    done = command(folder, hub, "me/lm")
    assert done.returncode == 1 and "lm-q8_0.gguf: changed" in done.stderr and "Traceback" not in done.stderr
    assert not hub.tokens and not hub.commits


def test_a_refused_token_is_reported_and_not_shown(folder, hub):
    done = command(folder, hub, "me/lm", token="wrong-token")
    assert done.returncode == 1 and "the upload to me/lm failed" in done.stderr and "401" in done.stderr
    assert "wrong-token" not in done.stdout + done.stderr and not hub.commits


def test_without_a_token_or_a_name_nothing_is_asked(folder, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", " ")
    with pytest.raises(ExportError, match="HF_TOKEN is not set"):
        push(folder, "me/lm", private=False)
    for name in ("lm", "me/", "a/b/c"):
        with pytest.raises(ExportError, match="REPO must be OWNER/NAME"):
            push(folder, name, private=False)


def test_a_hub_that_cannot_be_reached_is_reported(folder, hub):
    hub.url = "http://127.0.0.1:9"
    done = command(folder, hub, "me/lm")
    assert done.returncode == 1 and "the upload to me/lm failed" in done.stderr and "Traceback" not in done.stderr
