"""`make ui`: Prefect server, a worker and MLflow on loopback, until Ctrl-C.

Each child lives in its own session and is ended by its process group. Ports are checked before anything starts. A child that dies is told and started again;
one that keeps dying ends all, with the tail of its log.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from flows.deploy import POOL, deploy, forget, remember
from flows.settings import environment, project_root
from foundry.config import ConfigError, FoundryError
from foundry.tracking.address import own_store, sqlite_uri
from foundry.tracking.settings import artifacts_of, connect

HOST = "127.0.0.1"
START_TIMEOUT = 180.0  # seconds; a server takes 4 to 10, on a busy machine much longer
RESTARTS, RESTART_SPAN = 3, 300.0  # a child that dies more often in so many seconds is not started again


@dataclass
class Ui:
    """What was started."""

    root: Path
    prefect_url: str
    mlflow_url: str
    deployments: list[str] = field(default_factory=list)
    children: dict[str, subprocess.Popen] = field(default_factory=dict)
    deaths: dict[str, list[float]] = field(default_factory=dict)

    def log(self, name: str) -> Path:
        return self.root / ".foundry" / "ui" / f"{name}.log"

    def dead(self) -> str | None:
        """Name of a child that ended, if any."""
        return next((name for name, p in self.children.items() if p.poll() is not None), None)

    def command(self, name: str) -> list[str]:
        port = urllib.parse.urlsplit(self.prefect_url if name == "prefect-server" else self.mlflow_url).port
        if name == "prefect-server":
            return ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
        if name == "worker":
            return ["prefect", "worker", "start", "--pool", POOL, "--name", socket.gethostname()]
        store = [
            "--backend-store-uri",
            sqlite_uri(own_store(self.root)),
            "--artifacts-destination",
            artifacts_of(own_store(self.root)),
        ]
        return ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", *store]

    def spawn(self, name: str) -> None:
        """Starts a child, or starts it again; its output goes to its log."""
        more = {"PREFECT_API_URL": f"{self.prefect_url}/api", "FOUNDRY_MLFLOW_URL": self.mlflow_url}
        with open(self.log(name), "ab") as log:
            self.children[name] = subprocess.Popen(
                [sys.executable, "-m", *self.command(name)], cwd=self.root, env={**environment(self.root), **more},
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def watch(self) -> None:
        """Starts again what died; returns never.

        Raises:
            FoundryError: if a child keeps dying.
        """
        while True:
            if name := self.dead():
                now = time.monotonic()
                self.deaths[name] = [*(t for t in self.deaths.get(name, []) if now - t < RESTART_SPAN), now]
                how = f"{name} ended ({_ending(self.children[name].returncode)})"
                if len(self.deaths[name]) > RESTARTS:
                    raise FoundryError(f"{how} again and again; the end of {self.log(name)}:\n{tail(self.log(name))}")
                print(f"{how}: starting it again; its log is {self.log(name)}", flush=True)
                self.end(name)
                self.spawn(name)
            time.sleep(1)

    def wait_for(self, url: str) -> None:
        """Until it answers.

        Raises:
            FoundryError: if a child ends, or nothing answers in `START_TIMEOUT`.
        """
        end = time.monotonic() + START_TIMEOUT
        while time.monotonic() < end:
            if name := self.dead():
                raise FoundryError(f"{name} ended while starting; the end of {self.log(name)}:\n{tail(self.log(name))}")
            try:
                with urllib.request.urlopen(url, timeout=2) as answer:
                    if answer.status == 200:
                        return
            except OSError:
                time.sleep(0.3)
        raise FoundryError(
            f"{url} did not answer in {START_TIMEOUT:.0f} s; logs are in {self.root / '.foundry' / 'ui'}"
        )

    def stop(self) -> None:
        """Ends every child: worker first, so that a running stage is stopped cleanly."""
        for name in reversed(self.children):
            self.end(name)
        self.children.clear()
        forget(self.root)

    def end(self, name: str) -> None:
        """Ends a child's whole group; a dead one may have left processes in it, which hold its port."""
        p = self.children[name]
        for sig, wait in ((signal.SIGTERM, 20.0), (signal.SIGKILL, 5.0)):
            try:
                os.killpg(p.pid, sig)
            except ProcessLookupError:
                return
            with contextlib.suppress(subprocess.TimeoutExpired):
                p.wait(wait)


def free_port(port: int, option: str) -> int:
    """The port, or a free one for 0.

    Raises:
        ConfigError: if another program listens there.
    """
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((HOST, port))
        except OSError as e:
            raise ConfigError(
                f"port {port} on {HOST} is in use ({e.strerror}): stop what listens there, or choose another with {option} N "
                "(0 = any free one)"
            ) from None
        return s.getsockname()[1]


def start(root: Path, prefect_port: int = 4200, mlflow_port: int = 5000, webhook: str = "") -> Ui:
    """Starts everything and waits until both servers answer.

    Args:
        webhook: is told of runs that are late, fail or crash.

    Raises:
        ConfigError: if a port is in use; nothing was started.
        FoundryError: if a child ends or does not answer; everything was stopped again.
    """
    prefect_port, mlflow_port = free_port(prefect_port, "--prefect-port"), free_port(mlflow_port, "--mlflow-port")
    ui = Ui(root, f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}")
    state = root / ".foundry"
    (state / "ui").mkdir(parents=True, exist_ok=True)
    store = sqlite_uri(own_store(root))
    try:
        connect(store)  # makes it, if it is not there, under our lock: a training may do the same at this moment
        ui.spawn("prefect-server")
        ui.spawn("mlflow")
        ui.wait_for(f"{ui.prefect_url}/api/health")
        remember(root, ui.prefect_url, ui.mlflow_url)
        ui.deployments = deploy(root, f"{ui.prefect_url}/api", webhook)
        ui.spawn("worker")
        ui.wait_for(f"{ui.mlflow_url}/health")
    except BaseException:
        ui.stop()
        raise
    return ui


def _ending(code: int) -> str:
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Start Prefect (server and worker) and MLflow on this machine; Ctrl-C stops them."
    )
    parser.add_argument("--prefect-port", type=int, default=4200, help="default: %(default)s; 0 = any free one")
    parser.add_argument("--mlflow-port", type=int, default=5000, help="default: %(default)s; 0 = any free one")
    parser.add_argument("--webhook", default="", metavar="URL", help="is told of runs that are late, fail or crash")
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's `&` has it ignored
    print("starting Prefect and MLflow (some seconds) ...", flush=True)
    ui = None
    try:
        ui = start(project_root(), args.prefect_port, args.mlflow_port, args.webhook)
        query = urllib.parse.urlencode({"workflowType": "machine_learning"})
        print(f"Prefect   {ui.prefect_url}/deployments   {', '.join(ui.deployments)}")
        print(f"MLflow    {ui.mlflow_url}/#/experiments?{query}")
        print("a schedule is off until you switch it on; Ctrl-C stops all; logs are in .foundry/ui/", flush=True)
        ui.watch()
    except FoundryError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        print("stopping ...", flush=True)
    finally:
        if ui is not None:
            ui.stop()


if __name__ == "__main__":
    main()
