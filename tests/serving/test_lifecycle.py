"""The server as a process: signals, ports, addresses, exit codes."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import time

import pytest
from served_process import make_export, serving, tiny_model, write_params
from small_server import wait_for

from foundry.config import ConfigError, Serving
from foundry.serving.keys import read_keys
from foundry.serving.lifecycle import listen

LONG = 3000  # tokens of an answer: some seconds


@pytest.fixture(scope="module")
def project(tokenizer, tmp_path_factory):
    root = tmp_path_factory.mktemp("project")
    make_export(root / "artifacts/export", tiny_model(1, context=4096), tokenizer)
    return root


class Stream:
    """A streamed completion over a socket of its own."""

    def __init__(self, url, tokens):
        host, port = url.removeprefix("http://").split(":")
        self.connection = http.client.HTTPConnection(host, int(port), timeout=60)
        # The end symbol may end an answer early; without a chance for it, its length is known.
        body = {"prompt": "The", "max_tokens": tokens, "min_tokens": tokens, "seed": 1, "stream": True}
        body["stream_options"] = {"include_usage": True}
        self.connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        self.response = self.connection.getresponse()
        assert self.response.status == 200
        self.first = self.response.readline()

    def rest(self):
        return self.response.read().decode()


def test_running_streams_finish_after_sigterm_and_new_requests_get_a_503(project):
    write_params(project)
    with serving(project, "artifacts/export") as served:
        url = served.url
        busy = subprocess.run(
            [sys.executable, "-m", "foundry.cli", "serve", "artifacts/export", "--port", url.rpartition(":")[2]],
            cwd=project,
            capture_output=True,
            text=True,
        )
        streams = [Stream(url, LONG) for _ in range(3)]
        idle = socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])))
        served.process.send_signal(signal.SIGTERM)
        wait_for(lambda: served.call("/ready").status == 503)
        refused = served.call("/v1/completions", {"prompt": "The"})
        ends = [s.rest() for s in streams]
        assert served.process.wait(60) == 0
        idle.close()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=5)
    assert refused.status == 503 and refused.headers["connection"] == "close"
    assert refused.json["error"]["code"] == "unavailable" and int(refused.headers["retry-after"]) > 0
    for end in ends:
        assert end.endswith("data: [DONE]\n\n") and f'"completion_tokens":{LONG}' in end.replace(" ", "")
    assert busy.returncode == 1 and busy.stderr.count("\n") == 1
    assert busy.stderr.startswith("error: cannot listen on") and "--port" in busy.stderr


def test_a_second_signal_stops_at_once(project):
    write_params(project)
    with serving(project, "artifacts/export") as served:
        stream = Stream(served.url, LONG)
        assert stream.first
        served.process.send_signal(signal.SIGINT)
        wait_for(lambda: "a second signal stops at once" in served.log)
        began = time.monotonic()
        assert served.stop(signal.SIGINT) == 128 + signal.SIGINT
        assert time.monotonic() - began < 5


def test_what_the_grace_period_cuts_off_is_counted_and_is_no_success(project):
    write_params(project, grace_seconds=0.3)
    with serving(project, "artifacts/export") as served:
        stream = Stream(served.url, LONG)
        assert served.stop() == 1
        assert "1 requests are cut off after 0.3 s (serving.grace_seconds)" in served.log
        assert '"error"' in stream.rest()  # the client gets an error


def test_a_signal_while_the_model_is_loaded_ends_with_success(project):
    write_params(project)
    with serving(project, "artifacts/export", ready=False) as served:
        time.sleep(1.0)
        assert served.stop() in (0, -signal.SIGTERM)  # the latter: before the server began


def test_a_model_that_cannot_be_loaded_is_one_line_and_exit_code_1(project, tmp_path):
    write_params(tmp_path)
    with serving(tmp_path, project / "artifacts", ready=False) as served:
        assert served.process.wait(60) == 1
        wait_for(lambda: any(line.startswith("error: ") for line in served.lines))
        assert "config.json" in served.log and "Traceback" not in served.log


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_an_address_that_others_reach_needs_a_key(host):
    with pytest.raises(ConfigError, match="there is no API key"):
        listen(Serving(host=host, port=0), read_keys(None, {}))
    with listen(Serving(host=host, port=0), read_keys(None, {"FOUNDRY_API_KEYS": "a=12345678"})) as sock:
        assert sock.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_no_key(host):
    with listen(Serving(host=host, port=0), read_keys(None, {})) as sock:
        assert sock.getsockname()[1]


def test_an_unknown_address_is_a_mistake_of_the_user():
    with pytest.raises(ConfigError, match=r"serving\.host 'nowhere\.invalid' is not an address"):
        listen(Serving(host="nowhere.invalid", port=0), read_keys(None, {}))
