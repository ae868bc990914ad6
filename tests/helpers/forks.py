"""Runs of a script as forks of a process that has imported what the script imports: a second less for each.

A fork is a real process, with a pid, signals and an exit code of its own; only the seed of its hashes is its parent's.
A test that needs another seed, or the start of an interpreter, starts one itself.

    python forks.py SCRIPT FD       forks a run of `main()` of a script for each request over the socket FD
"""

import importlib.util
import json
import os
import select
import signal
import socket
import subprocess
import sys
import traceback
from pathlib import Path


class Forks:
    """Starts runs of one script.

    Args:
        script: has a `main()` that reads `sys.argv`.
    """

    def __init__(self, script: Path):
        self._socket, theirs = socket.socketpair()
        command = [sys.executable, __file__, str(script), str(theirs.fileno())]
        self._server = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
        theirs.close()
        self._said, self._codes = b"", {}

    def start(self, *args):
        """Starts a run; all that it prints is in its `stdout`."""
        out, theirs = os.pipe()
        socket.send_fds(self._socket, [json.dumps([str(a) for a in args]).encode()], [theirs])
        os.close(theirs)
        while (pid := self._hear().get("pid")) is None:
            pass
        return Run(self, pid, os.fdopen(out, encoding="utf-8"))

    def code(self, pid, wait=True):
        """How a run ended, as `Popen.returncode`; None: it did not."""
        while pid not in self._codes and (wait or b"\n" in self._said or select.select([self._socket], [], [], 0)[0]):
            self._hear()
        return self._codes.get(pid)

    def close(self):
        self._socket.close()
        self._server.wait()

    def _hear(self):
        while b"\n" not in self._said:
            if not (data := self._socket.recv(1 << 16)):
                raise RuntimeError("the process that forks has ended")
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        said = json.loads(line)
        if "ended" in said:
            self._codes[said["ended"]] = said["code"]
        return said


class Run:
    """As much of `subprocess.Popen` as the tests use."""

    def __init__(self, forks, pid, stdout):
        self.pid, self.stdout, self.returncode = pid, stdout, None
        self._forks = forks

    def poll(self):
        self.returncode = self._forks.code(self.pid, wait=False)
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self):
        """(the rest of what it prints, None), when it has ended."""
        with self.stdout:
            text = self.stdout.read()
        self.returncode = self._forks.code(self.pid)
        return text, None


def serve(main, asked):
    """Forks a run of `main` for each request, and says how it ended.

    Args:
        asked: the socket; a request is a list of arguments and the file that the run prints into.
    """
    poll, runs = select.poll(), {}
    poll.register(asked, select.POLLIN)
    while True:
        for fd, _ in poll.poll():
            if fd in runs:  # its end of the pipe was closed: it has ended
                poll.unregister(fd)
                os.close(fd)
                pid = runs.pop(fd)
                code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
                asked.sendall(json.dumps({"ended": pid, "code": code}).encode() + b"\n")
                continue
            request, files, *_ = socket.recv_fds(asked, 1 << 16, 1)
            if not request:
                return
            living, alive = os.pipe()
            if not (pid := os.fork()):
                asked.close()
                run(main, json.loads(request), files[0])
            for file in (*files, alive):
                os.close(file)
            runs[living] = pid
            poll.register(living, select.POLLIN)
            asked.sendall(json.dumps({"pid": pid}).encode() + b"\n")


def run(main, arguments, out):
    """Calls `main` as an interpreter does, and ends this process."""
    code = 1
    try:
        for fd in (1, 2):
            os.dup2(out, fd)
        os.close(out)
        sys.argv[1:] = arguments
        main()
        code = 0
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    spec = importlib.util.spec_from_file_location("script", sys.argv[1])
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    serve(script.main, socket.socket(fileno=int(sys.argv[2])))
