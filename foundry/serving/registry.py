"""The registry, asked through a child process.

MLflow takes two seconds to import, and its calls hold Python's interpreter lock. In a process of its own they delay
neither the start of the server nor a token. The parent writes a `Question` per line to the child's standard input and
reads one `Reply` per line.
"""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from foundry.config import ConfigError, FoundryError, TrackingError
from foundry.utils.records import Record

ADDRESS = "models:/"
ERRORS: dict[str, type[FoundryError]] = {e.__name__: e for e in (ConfigError, TrackingError)}
SECONDS = 600.0  # for an answer; downloads are in it


class Question(Record):
    """Which version an address names, and its files if it is not the known one.

    Attributes:
        address: `models:/NAME@ALIAS` or `models:/NAME/VERSION`.
        uri: of MLflow.
        into: an empty folder for the export.
        known: content hash of the version that need not be fetched.
    """

    address: str
    uri: str
    into: str
    known: str | None = None


class Registered(Record):
    """A version of the registry.

    Attributes:
        content: hash of its export, as it was registered.
        folder: of its export, which nobody has verified yet; None if it is the known one.
    """

    kind: Literal["found"] = "found"
    name: str
    version: str
    content: str
    folder: str | None


class Refused(Record):
    """Why there is no answer: a class of `ERRORS` and its message."""

    kind: Literal["refused"] = "refused"
    error: str
    message: str


class Registry:
    """Asks the registry at one address of MLflow. The child starts at once; `close` ends it."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._lock = threading.Lock()
        self._closed = False
        self._child: subprocess.Popen[str] | None = None
        self._start()

    def _start(self) -> subprocess.Popen[str]:
        self._child = subprocess.Popen(
            [sys.executable, "-m", "foundry.serving.registry"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is the server's business
        )
        return self._child

    def find(self, address: str, into: Path, known: str | None = None) -> Registered:
        """The version that an address names now; its export is copied into a folder unless it is the known one.

        Raises:
            ConfigError: if there is no such version or alias.
            TrackingError: if MLflow cannot be reached, or does not answer.
        """
        question = Question(address=address, uri=self.uri, into=str(into), known=known)
        with self._lock:
            if self._closed:
                raise TrackingError("the registry is closed")
            child = self._child if self._child and self._child.poll() is None else self._start()
            line = self._exchange(child, question.model_dump_json() + "\n")
        try:
            return Registered.model_validate_json(line)
        except ValidationError:
            refused = Refused.model_validate_json(line)
            raise ERRORS[refused.error](refused.message) from None

    def _exchange(self, child: subprocess.Popen[str], line: str) -> str:
        answer, late = "", threading.Timer(SECONDS, child.kill)
        late.daemon = True
        late.start()
        try:
            if child.stdin and child.stdout:
                child.stdin.write(line)
                child.stdin.flush()
                answer = child.stdout.readline()
        except (BrokenPipeError, ValueError):  # it has died; ValueError: `close` has closed the pipes
            pass
        finally:
            late.cancel()
        if not answer:
            child.kill()
            child.wait()
            raise TrackingError(f"the process that asks MLflow at {self.uri} ended without an answer")
        return answer

    def close(self) -> None:
        """Ends the child, whatever it does."""
        self._closed = True
        if self._child:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                with contextlib.suppress(OSError):  # what is left in its buffer cannot be written any more
                    if pipe:
                        pipe.close()


def answer(question: Question) -> Registered:
    """Looks a version up and copies its export.

    Raises:
        ConfigError, TrackingError: as `Registry.find`.
    """
    from foundry.tracking.names import CONTENT
    from foundry.tracking.registry import fetch, find, reached

    with reached(question.uri, f"look up {question.address}", alone=False) as client:
        version = find(client, question.address)
        name, number, content = version.name, str(version.version), version.tags.get(CONTENT, "")
        if content and content == question.known:
            return Registered(name=name, version=number, content=content, folder=None)
        found = fetch(client, version, question.uri, Path(question.into))
    folder = next((p.parent for p in sorted(found.rglob("proof.json"))), found)
    return Registered(name=name, version=number, content=content, folder=str(folder))


def main() -> None:
    """The child: answers until its parent closes the pipe or ends."""
    from foundry.tracking.settings import prepare_environment
    from foundry.utils.process import as_worker

    as_worker()
    prepare_environment()
    out, sys.stdout = sys.stdout, sys.stderr  # what a library prints is no answer
    logging.disable(logging.WARNING)
    with contextlib.suppress(ImportError):  # it is reported by the first answer
        import mlflow  # noqa: F401 - before the first question, while the parent loads torch
    for line in sys.stdin:
        try:
            reply: Record = answer(Question.model_validate_json(line))
        except Exception as e:
            kind = next((k for k, error in ERRORS.items() if isinstance(e, error)), "TrackingError")
            text = str(e) if isinstance(e, FoundryError) else f"{type(e).__name__}: {e}"
            reply = Refused(error=kind, message=text)
        out.write(reply.model_dump_json() + "\n")
        out.flush()


if __name__ == "__main__":
    main()
