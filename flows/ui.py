"""`make ui`: Prefect server, a worker, MLflow and, if it is asked for, `foundry serve` on loopback, until Ctrl-C.

A lock allows one per project. Each child has its own session and is ended by its process group; it dies with this
process, however that ends. Ports are checked before anything starts. A child that dies is reported and started again;
if it keeps dying, everything ends, with the tail of its log. On Ctrl-C, SIGTERM and SIGHUP (a closed terminal) the
worker ends first: a run saves and reports its state while Prefect's server is still there.
"""

import argparse
import contextlib
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from flows.deploy import POOL, deploy
from flows.recovery import PROJECT_VAR, SAVING, FlowRuns, end_processes, processes, wait_ended
from flows.runner import die_with_parent
from flows.settings import environment, project_root
from foundry.config import ConfigError, FoundryError, LockError
from foundry.tracking.address import own_store, sqlite_uri
from foundry.tracking.settings import artifacts_of, connect
from foundry.utils.locks import exclusive
from foundry.utils.served import Addresses, addresses, lock_path, remove_addresses, write_addresses

HOST = "127.0.0.1"
START_TIMEOUT = 180.0  # seconds; a server takes 4 to 10, on a busy machine much longer
LOG_MOST = 8_000_000  # bytes of a log before it is moved to NAME.log.1, which it replaces
GUARD = Path(__file__).with_name("guard.py")
RESTARTS, RESTART_SPAN = 3, 300.0  # a child that dies more than 3 times in 300 seconds is not restarted


@dataclass
class Ui:
    """What was started.

    Attributes:
        deaths: when each child died.
        repaired: what a killed `make ui` had left, and what was done about it: one sentence each.
        locks: the locks of the project and of Prefect's folder.
        serve_url: address of `foundry serve`; None if it was not asked for.
    """

    root: Path
    prefect_url: str
    mlflow_url: str
    deployments: list[str] = field(default_factory=list)
    children: dict[str, subprocess.Popen] = field(default_factory=dict)
    deaths: dict[str, list[float]] = field(default_factory=dict)
    repaired: list[str] = field(default_factory=list)
    locks: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    serve_url: str | None = None

    def log(self, name: str) -> Path:
        return self.root / ".foundry" / "ui" / f"{name}.log"

    def dead(self) -> str | None:
        """The name of a child that has ended, if any."""
        return next((name for name, p in self.children.items() if p.poll() is not None), None)

    def command(self, name: str) -> list[str]:
        port = urllib.parse.urlsplit(self.prefect_url if name == "prefect-server" else self.mlflow_url).port
        if name == "prefect-server":
            return ["prefect", "server", "start", "--host", HOST, "--port", str(port)]
        if name == "worker":
            return ["prefect", "worker", "start", "--pool", POOL, "--name", socket.gethostname()]
        if name == "serve":
            return ["foundry.cli", "serve", "--host", HOST, "--port", str(urllib.parse.urlsplit(self.serve_url).port)]
        store = own_store(self.root)
        files = ["--backend-store-uri", sqlite_uri(store), "--artifacts-destination", artifacts_of(store)]
        return ["mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1", *files]

    def spawn(self, name: str) -> None:
        """Starts or restarts a child, with its output in its log. It and its children die with this process."""
        urls = {"PREFECT_API_URL": f"{self.prefect_url}/api", "FOUNDRY_MLFLOW_URL": self.mlflow_url}
        env = {**environment(self.root), **urls, PROJECT_VAR: str(self.root)}
        # The runs of a worker that dies end by themselves (flows.runner.end_with_worker).
        guard = [] if name == "worker" else [sys.executable, "-S", str(GUARD)]
        with open(self.log(name), "ab") as log:
            self.children[name] = subprocess.Popen(
                [*guard, sys.executable, "-m", *self.command(name)],
                cwd=self.root,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=die_with_parent,
            )

    def rotate_logs(self) -> None:
        """Moves a long log aside. Its child continues to write to the same file, which it opened for appending."""
        for name in self.children:
            log = self.log(name)
            if log.stat().st_size > LOG_MOST:
                shutil.copyfile(log, f"{log}.1")
                os.truncate(log, 0)

    def watch(self) -> None:
        """Restarts children that die; never returns.

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
                say(f"{how}: starting it again; its log is {self.log(name)}")
                self.end(name)
                self.spawn(name)
            self.rotate_logs()
            time.sleep(1)

    def wait_for(self, url: str) -> None:
        """Waits until an address answers.

        Raises:
            FoundryError: if a child ends, or nothing answers in `START_TIMEOUT` seconds.
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
        """Ends every child. A run in progress ends first: it saves, and reports its state to the server."""
        if "worker" in self.children:
            self.end_runs()
        for name in reversed(self.children):
            self.end(name)
        self.children.clear()
        remove_addresses(self.root)
        self.locks.close()

    def end_runs(self) -> None:
        """Ends the runs of the worker, as a time limit does.

        The worker is suspended meanwhile: it would start the next run, and kills its runs when it ends.
        """
        worker = self.children["worker"]
        runs = processes(self.root).runs
        if not runs or worker.poll() is not None:
            return
        say(f"a run is in progress: it saves and reports its state (up to {SAVING:.0f} s) ...")
        worker.send_signal(signal.SIGSTOP)
        for p in runs:
            with contextlib.suppress(psutil.NoSuchProcess):
                if p.ppid() == worker.pid:
                    p.terminate()
        for p in wait_ended(runs, SAVING):
            say(f"process {p.pid} of the run did not end")
        worker.kill()

    def end(self, name: str) -> None:
        """Ends a child's whole group; a dead child may have left processes in it, which occupy its port."""
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
        ConfigError: if another program listens there, or the port may not be opened.
    """
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((HOST, port))
        except OverflowError:
            raise ConfigError(f"{option}: a port is a number from 0 to 65535, got {port}") from None
        except OSError as e:
            if e.errno == errno.EADDRINUSE:
                why = f"is in use ({e.strerror}): stop the program that listens there"
            else:
                why = f"cannot be opened ({e.strerror})"
            raise ConfigError(
                f"port {port} on {HOST} {why}, or choose another with `make ui {option}=N` (0 = any free one)"
            ) from None
        return s.getsockname()[1]


def start(
    root: Path, prefect_port: int = 4200, mlflow_port: int = 5000, webhook: str = "", serve_port: int | None = None
) -> Ui:
    """Starts everything and waits until all servers answer.

    Args:
        webhook: an address that is called for runs that are late, fail or crash.
        serve_port: also start `foundry serve` at this port; None: do not.

    Raises:
        LockError: if another one runs in this project; the message names its addresses.
        ConfigError: if a port is in use; nothing was started.
        FoundryError: if a child ends or does not answer; everything was stopped.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_one(root))
        repaired = end_processes(root)
        remove_addresses(root)
        prefect_port, mlflow_port = free_port(prefect_port, "prefect_port"), free_port(mlflow_port, "mlflow_port")
        urls = (f"http://{HOST}:{prefect_port}", f"http://{HOST}:{mlflow_port}")
        serve_url = None if serve_port is None else f"http://{HOST}:{free_port(serve_port, 'serve_port')}"
        ui = Ui(root, *urls, repaired=repaired, locks=stack.pop_all(), serve_url=serve_url)
    store = sqlite_uri(own_store(root))
    try:
        connect(store)  # creates a missing store under our lock: a training may do the same at this moment
        ui.spawn("prefect-server")
        ui.spawn("mlflow")
        ui.wait_for(f"{ui.prefect_url}/api/health")
        write_addresses(root, Addresses(prefect=ui.prefect_url, mlflow=ui.mlflow_url))
        ui.repaired += FlowRuns(f"{ui.prefect_url}/api", POOL).recover(root)
        ui.deployments = deploy(root, f"{ui.prefect_url}/api", webhook)
        ui.spawn("worker")
        ui.wait_for(f"{ui.mlflow_url}/health")
        if ui.serve_url:
            ui.spawn("serve")
            ui.wait_for(f"{ui.serve_url}/ready")
    except BaseException:
        ui.stop()
        raise
    return ui


@contextlib.contextmanager
def only_one(root: Path) -> Iterator[None]:
    """Holds the locks of the project and of Prefect's folder.

    PREFECT_HOME may make two projects share that folder, and two servers on one SQLite file harm each other.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(exclusive(lock_path(root), wait=1.0))  # `addresses` takes it for a moment
        except LockError as e:
            here = addresses(root)
            where = f"{here.prefect} (Prefect), {here.mlflow} (MLflow)" if here else "it is starting or stopping"
            raise LockError(f"`make ui` already runs here: {where}; pid {e.pid}", e.pid) from None
        prefect = environment(root)["PREFECT_HOME"]
        stack.enter_context(exclusive(Path(prefect) / "foundry.lock", f"a `make ui` with PREFECT_HOME={prefect}"))
        yield


def say(words: str) -> None:
    """Prints, unless the terminal is gone."""
    with contextlib.suppress(OSError):
        print(words, flush=True)


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
    parser.add_argument("--serve-port", type=int, metavar="N", help="also start `foundry serve` at this port; 0 = any")
    parser.add_argument("--webhook", default="", metavar="URL", help="called for runs that are late, fail or crash")
    args = parser.parse_args()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for a command with `&`
    also = "" if args.serve_port is None else ", and foundry serve"
    print(f"starting Prefect and MLflow{also} (some seconds) ...", flush=True)
    ui = None
    try:
        ui = start(project_root(), args.prefect_port, args.mlflow_port, args.webhook, args.serve_port)
        query = urllib.parse.urlencode({"workflowType": "machine_learning"})
        for line in ui.repaired:
            say(line)
        print(f"Prefect   {ui.prefect_url}/deployments   {', '.join(ui.deployments)}")
        print(f"MLflow    {ui.mlflow_url}/#/experiments?{query}")
        if ui.serve_url:
            print(f"server    {ui.serve_url}/")
        print("a schedule is off until you switch it on; Ctrl-C stops everything; logs are in .foundry/ui/", flush=True)
        ui.watch()
    except FoundryError as e:
        sys.exit(f"error: {e}")
    except KeyboardInterrupt:
        say("stopping ...")
    finally:
        if ui is not None:
            ui.stop()


if __name__ == "__main__":
    main()
