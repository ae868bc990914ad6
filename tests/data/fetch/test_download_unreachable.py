"""A publisher that does not answer: every kind of address ends in `UnreachableError`, the stage in exit code 75."""

import hashlib
import http.server
import logging
import os
import threading
from pathlib import Path

import pytest
import yaml

from foundry.config import ConfigError, DataError, UnreachableError, parse_config
from foundry.data.fetch import remote, web
from foundry.data.fetch.download import download
from foundry.utils import stage as frame
from foundry.utils.network import is_transient
from stages.download import main

LOG = logging.getLogger("foundry")
SHA = hashlib.sha256(b"text\n").hexdigest()
COMMIT = "a" * 40


def run(*sources):
    return download(parse_config({"download": {"sources": list(sources)}}), Path("data/raw"), LOG)


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(web, "FIRST_WAIT", 0.001)
    monkeypatch.setattr(web, "TRIES", 3)


@pytest.fixture
def away():
    """A server that answers by `server.act(handler)`; by default it drops each connection."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            self.server.asked.append(self.path)
            self.close_connection = True
            self.server.act(self)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.asked, server.act = True, [], lambda handler: None
    server.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def answer(status, body=b"", announced=None):
    def act(handler):
        handler.send_response(status)
        handler.send_header("Content-Type", "text/html")
        handler.send_header("Content-Length", str(len(body) if announced is None else announced))
        handler.end_headers()
        handler.wfile.write(body)

    return act


@pytest.fixture
def stage(project, monkeypatch):
    """Runs the real download stage in this process; its exit code."""
    monkeypatch.setattr(frame, "die_with_parent", lambda: None)  # the setting would outlive the test

    def run(*sources):
        (project / "params.yaml").write_text(yaml.safe_dump({"download": {"sources": list(sources)}}))
        with pytest.raises(SystemExit) as e:
            main()
        return e.value.code

    return run


def test_the_stage_exits_with_75_when_the_server_drops_every_connection(stage, away, capsys):
    assert stage({"name": "s", "url": f"{away.url}/a.txt"}) == os.EX_TEMPFAIL == 75
    assert len(away.asked) == web.TRIES
    assert "3 tries in a row" in capsys.readouterr().err
    assert not Path("data/raw").exists()


def test_the_stage_exits_with_1_for_what_no_retry_can_fix(stage, away):
    away.act = answer(404)
    missing = {"name": "missing", "url": f"{away.url}/a.txt"}
    assert stage(missing) == 1
    silent = {"name": "silent", "url": "http://127.0.0.1:9/a.txt"}
    assert stage(silent) == 75
    assert stage(silent, missing) == 1  # the retry would fail for the other one


@pytest.mark.parametrize("status", sorted(web.RETRIED))
def test_a_busy_server_is_unreachable(project, away, status):
    away.act = answer(status)
    with pytest.raises(UnreachableError, match=str(status)):
        run({"name": "s", "url": f"{away.url}/a.txt"})


def test_a_silent_mirror_is_worth_a_retry(project, away):
    away.act = answer(404)
    gone, silent = f"{away.url}/a.txt", "http://127.0.0.1:9/a.txt"
    with pytest.raises(UnreachableError, match="then its mirrors"):
        run({"name": "s", "url": gone, "mirrors": [silent], "sha256": SHA})
    with pytest.raises(UnreachableError, match="then its mirrors"):
        run({"name": "s", "url": silent, "mirrors": [gone], "sha256": SHA})
    with pytest.raises(DataError) as e:
        run({"name": "s", "url": gone, "mirrors": [f"{away.url}/b.txt"], "sha256": SHA})
    assert not isinstance(e.value, UnreachableError)


def test_an_npm_registry_that_drops_connections_is_unreachable(project, away, monkeypatch):
    monkeypatch.setenv("npm_config_registry", away.url)
    monkeypatch.setenv("PATH", "/nowhere")  # so that no npm with other settings is found
    with pytest.raises(UnreachableError):
        run({"name": "s", "url": "npm:tiny@1.0.0", "sha256": SHA})


@pytest.fixture
def index(away, monkeypatch):
    """The loopback server as pip's only index, asked twice."""
    for key in [k for k in os.environ if k.startswith("PIP_")]:
        monkeypatch.delenv(key)
    settings = {"INDEX_URL": f"{away.url}/simple", "RETRIES": "1", "CONFIG_FILE": os.devnull, "NO_CACHE_DIR": "1"}
    for key, value in settings.items():
        monkeypatch.setenv(f"PIP_{key}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return away


def listing_then(act):
    page = b'<a href="/f/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>'
    return lambda handler: answer(200, page)(handler) if "simple" in handler.path else act(handler)


WHEEL = {"name": "s", "url": "pypi:tiny==1.0", "sha256": SHA}


AWAY = {
    "drops": lambda handler: None,
    "503": answer(503),
    "file 503": listing_then(answer(503)),
    "file 429": listing_then(answer(429)),
}


@pytest.mark.parametrize("act", AWAY.values(), ids=AWAY)
def test_a_package_index_that_does_not_answer_is_unreachable(project, index, act):
    index.act = act
    with pytest.raises(UnreachableError, match=r"tiny==1\.0"):
        run(WHEEL)
    assert index.asked


GONE = {
    "missing": answer(404),
    "deleted": listing_then(answer(404)),
    "forbidden": listing_then(answer(403)),
    "other": listing_then(answer(200, b"another wheel")),
}


@pytest.mark.parametrize("act", GONE.values(), ids=GONE)
def test_a_package_that_is_missing_or_another_one_is_not(project, index, act):
    index.act = act
    with pytest.raises(DataError, match=r"tiny==1\.0") as e:
        run(WHEEL)
    assert not isinstance(e.value, UnreachableError)


def test_a_package_whose_transfer_breaks_off_is_unreachable(project, index):
    lengths = iter(range(100, 1000))
    index.act = listing_then(lambda handler: answer(200, b"x" * next(lengths), announced=2000)(handler))
    with pytest.raises(UnreachableError, match=r"tiny==1\.0"):
        run(WHEEL)


@pytest.fixture
def hub(away, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", away.url)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    return away


@pytest.mark.parametrize("act", [lambda handler: None, answer(503), answer(429)], ids=["drops", "503", "429"])
@pytest.mark.parametrize("path", ["one.jsonl", "*.jsonl"])
def test_a_hub_that_does_not_answer_is_unreachable(project, hub, act, path):
    hub.act = act
    with pytest.raises(UnreachableError, match="HF_ENDPOINT"):
        run({"name": "s", "url": f"hf:me/set@{COMMIT}/{path}"})
    assert hub.asked


@pytest.mark.parametrize("path", ["one.jsonl", "*.jsonl"])
def test_a_hub_that_lacks_the_data_set_or_may_not_be_asked_is_not(project, hub, monkeypatch, path):
    from huggingface_hub import constants

    hub.act = answer(404)
    with pytest.raises(DataError) as missing:
        run({"name": "s", "url": f"hf:me/set@{COMMIT}/{path}"})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="HF_HUB_OFFLINE") as offline:
        run({"name": "s", "url": f"hf:me/set@{COMMIT}/{path}"})
    assert not isinstance(missing.value, UnreachableError) and not isinstance(offline.value, UnreachableError)


@pytest.mark.parametrize("act", [lambda handler: None, answer(503)], ids=["drops", "503"])
@pytest.mark.parametrize("path", ["one.txt", "*.txt"])
def test_a_bucket_that_does_not_answer_is_unreachable(project, away, monkeypatch, act, path):
    pytest.importorskip("s3fs")
    settings = {"ENDPOINT_URL": away.url, "ACCESS_KEY_ID": "x", "SECRET_ACCESS_KEY": "x", "DEFAULT_REGION": "us-east-1"}
    for key, value in {**settings, "MAX_ATTEMPTS": "1", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{key}", value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("s3fs.core.S3FileSystem.retries", 1)
    away.act = act
    with pytest.raises(UnreachableError, match="s3://books"):
        run({"name": "s", "url": f"s3://books/{path}"})
    assert away.asked


def test_a_mistake_of_our_own_in_a_driver_call_keeps_its_traceback():
    for ours in (TypeError("x"), AttributeError("x"), KeyError("x")):
        with pytest.raises(type(ours)), remote._driver("s3://books/a"):
            raise ours
    with pytest.raises(DataError, match="PermissionError"), remote._driver("s3://books/a"):
        raise PermissionError("no")


def test_a_refused_certificate_stays_refused():
    import ssl

    import requests

    error = requests.exceptions.SSLError("certificate")  # a ConnectionError of that library
    error.__cause__ = ssl.SSLCertVerificationError("expired")
    assert not is_transient(error)
    assert is_transient(requests.exceptions.ConnectionError("reset")) and not is_transient(ConfigError("a key"))
