"""Helpers of the tests of tracking: a tracked run, its history, a real MLflow server that can be killed, a faulty
proxy.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from foundry.tracking import DatasetRef, Tracker
from foundry.tracking.names import FINGERPRINT, STAGE
from foundry.tracking.settings import connect


def tracker(folder, uri, fingerprint="f1", **kw):
    options = {"params": {"train": {"lr": 0.1}}, "tags": {STAGE: "train"}, "system": False, **kw}
    data = [DatasetRef(name="data/shards", digest="d" * 36, path="data/shards")]
    return Tracker(folder, uri=uri, experiment="e", run_name="r", fingerprint=fingerprint, datasets=data, **options)


def history(uri, fingerprint, key="loss", experiment="e"):
    """The one run of a fingerprint, and its points in the order of their steps."""
    client = connect(uri)
    where = [client.get_experiment_by_name(experiment).experiment_id]
    (run,) = client.search_runs(where, f"tags.`{FINGERPRINT}` = '{fingerprint}'")
    return run, sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, key))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


REFUSAL = b'{"error_code": "INTERNAL_ERROR", "message": "out of order"}'


class MlflowServer:
    """A real `mlflow server` on loopback; after a restart it serves the same store at the same port."""

    def __init__(self, root):
        self.root, self.port = root, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self._process = None

    def start(self):
        env = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        store, files = f"sqlite:///{self.root}/server.db", str(self.root / "served")
        options = {"--host": "127.0.0.1", "--port": str(self.port), "--workers": "1"}
        options |= {"--backend-store-uri": store, "--artifacts-destination": files}
        command = [sys.executable, "-m", "mlflow", "server", *(word for pair in options.items() for word in pair)]
        self._process = subprocess.Popen(
            command, env=env, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        for _ in range(900):
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=1)
                return self
            except OSError:
                time.sleep(0.2)
        self.kill()
        raise AssertionError("the server did not start")

    def kill(self):
        if self._process:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


class Proxy:
    """Before a server: `mode` is `pass`, `slow` (every request waits), `500` (refused) or `lost` (done, but
    the first answer of each kind of request is a 500).

    Attributes:
        done: (path, body) of every request that reached the server.
        refused: how many were answered with 500.
    """

    def __init__(self, target):
        self.mode, self.pause, self.done, self.refused = "pass", 0.3, [], 0
        self.lost = set()  # kinds of requests whose first answer was lost
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                pass

            def _answer(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                mode = proxy.mode
                if mode == "slow":
                    time.sleep(proxy.pause)
                kind, status, data = self.path.partition("?")[0], 500, REFUSAL
                if mode != "500":
                    status, data = self._forward(body)
                    proxy.done.append((self.path, body))
                if mode == "500" or (mode == "lost" and kind not in proxy.lost):
                    proxy.refused += 1
                    proxy.lost.add(kind)
                    status, data = 500, REFUSAL
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def _forward(self, body):
                kind = {"Content-Type": self.headers.get("Content-Type") or "application/json"}
                request = urllib.request.Request(target + self.path, body or None, kind, method=self.command)
                try:
                    with urllib.request.urlopen(request, timeout=30) as answer:
                        return answer.status, answer.read()
                except urllib.error.HTTPError as e:
                    return e.code, e.read()

            do_GET = do_POST = do_PATCH = do_DELETE = _answer

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
