"""What a server records if it is asked to: requests, answers and feedback, as JSON lines.

One thread writes. Files are `record-000001.jsonl`, `record-000002.jsonl` and so on; a server begins a new one at its
start, at `serving.record_bytes`, and after an error of the disk. A line is written by one call and flushed to the disk,
so that a killed server leaves at most the last line of the last file incomplete, which `read_recording` skips.
Whatever happens to the disk, the server continues to answer: a lost line is reported and counted.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from foundry.config import ConfigError, DataError, FoundryError
from foundry.serving.interface import Exchange
from foundry.utils.files import fsync_dir, make_folder, open_to_write
from foundry.utils.locks import exclusive
from foundry.utils.log import get_logger
from foundry.utils.records import Record

NAME = re.compile(r"record-(\d{6,})\.jsonl")
WAITING = 10_000  # lines that may wait for the disk


class RecordedModel(Record):
    """The version that answered."""

    name: str
    version: str | None
    fingerprint: str
    weights_sha256: str
    weights: str


class RecordedAnswer(Record):
    """One answer to a request.

    Attributes:
        prompt: number of the prompt in a request with several.
        seed: with which the same model gives the same text again.
        reason: `stop`, `length`, `cancelled`, `timeout` or `error`.
    """

    index: int
    prompt: int
    text: str
    seed: int
    reason: str
    completion_tokens: int


class RecordedExchange(Record):
    """A request for text and its answers.

    Attributes:
        id: of the response; feedback refers to it.
        time: Unix time in seconds when the request arrived.
        seconds: until its end.
        key: name of the API key; None without keys.
        request: the JSON object that the client sent.
        status: of HTTP; 499 if the client disconnected before the end.
    """

    kind: Literal["exchange"] = "exchange"
    format: Literal[1] = 1
    id: str
    time: float
    seconds: float
    route: str
    key: str | None
    model: RecordedModel
    request: dict[str, Any]
    answers: list[RecordedAnswer]
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    status: int

    @classmethod
    def of(cls, exchange: Exchange) -> RecordedExchange:
        facts = exchange.version.facts
        return cls(
            id=exchange.id,
            time=exchange.started,
            seconds=exchange.seconds,
            route=exchange.route,
            key=exchange.key,
            model=RecordedModel(
                name=exchange.version.name,
                version=facts.version,
                fingerprint=facts.fingerprint,
                weights_sha256=facts.weights_sha256,
                weights=facts.weights,
            ),
            request=exchange.body,
            answers=[
                RecordedAnswer(**{name: getattr(answer, name) for name in RecordedAnswer.model_fields})
                for answer in exchange.answers
            ],
            prompt_tokens=exchange.prompt_tokens,
            cached_tokens=exchange.cached_tokens,
            completion_tokens=exchange.completion_tokens,
            status=exchange.status,
        )


class RecordedFeedback(Record):
    """What a person thought of an answer.

    Attributes:
        id: of the exchange.
        index: of the answer.
        rating: 1 is good, -1 is bad, 0 takes an earlier rating back.
    """

    kind: Literal["feedback"] = "feedback"
    format: Literal[1] = 1
    id: str
    time: float
    key: str | None
    index: int = Field(ge=0)
    rating: Literal[-1, 0, 1]
    comment: str | None = None


Line = RecordedExchange | RecordedFeedback
_LINE: TypeAdapter[Line] = TypeAdapter(Line)


class Recorder:
    """Writes lines into a folder until it is closed; `add` never blocks.

    Args:
        lost: is called when lines are lost.

    Raises:
        ConfigError: if this cannot be a folder.
        LockError: if another server records into the folder.
        DiskError: if the folder cannot be written.
    """

    def __init__(self, folder: str | Path, bytes_per_file: int, lost: Callable[[], None] = lambda: None) -> None:
        self.folder, self._limit, self._lost = Path(folder), bytes_per_file, lost
        self._stack = ExitStack()
        try:
            make_folder(self.folder)
            self._stack.enter_context(exclusive(self.folder / ".lock", f"recording into {self.folder}", note="records"))
        except OSError as e:
            raise ConfigError(
                f"serving.record must be a folder, or a place where one can be made; {str(folder)[:200]}: {e.strerror}"
            ) from None
        self._queue: queue.Queue[Line | None] = queue.Queue(WAITING)
        self._file: IO[bytes] | None = None
        self._open = ExitStack()
        self._written = 0
        self._problem: str | None = None
        try:
            self._next_file()
        except BaseException:
            self._stack.close()
            raise
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def add(self, line: Line) -> None:
        """Has a line written; if too many are waiting, it is lost and counted."""
        try:
            self._queue.put_nowait(line)
        except queue.Full:
            self._report(f"{WAITING} lines are waiting for the disk")

    def close(self) -> None:
        """Writes what is waiting and closes the file."""
        self._queue.put(None)
        self._thread.join()
        self._stack.close()

    def _run(self) -> None:
        more = True
        while more:
            more = self._write(self._queue.get())
            while more and not self._queue.empty():
                more = self._write(self._queue.get())
            self._flush()
        self._open.close()

    def _write(self, line: Line | None) -> bool:
        if line is None:
            return False
        try:
            data = line.model_dump_json().encode() + b"\n"
            if self._file is None or (self._written and self._written + len(data) > self._limit):
                self._next_file()
            if self._file:
                self._file.write(data)
                self._file.flush()
            self._written += len(data)
            self._problem = None
        except (FoundryError, OSError) as e:
            self._give_up(e)
        return True

    def _flush(self) -> None:
        try:
            if self._file:
                os.fsync(self._file.fileno())
        except OSError as e:
            self._give_up(e)

    def _give_up(self, error: Exception) -> None:
        """Ends a file whose last line may be incomplete; the next line begins another one."""
        self._report(str(error))
        self._file = None
        try:
            self._open.close()
        except (FoundryError, OSError):  # its buffer still holds the line that could not be written
            self._open = ExitStack()

    def _report(self, problem: str) -> None:
        self._lost()
        if problem != self._problem:
            self._problem = problem
            get_logger().error("a request could not be recorded: %s", problem)

    def _next_file(self) -> None:
        self._flush()
        self._file = None
        self._open.close()
        numbers = [int(found[1]) for p in self.folder.iterdir() if (found := NAME.fullmatch(p.name))]
        path = self.folder / f"record-{max(numbers, default=0) + 1:06d}.jsonl"
        self._open = ExitStack()
        self._file = self._open.enter_context(open_to_write(path, "ab"))
        self._written = 0
        fsync_dir(self.folder)


def recording_files(folder: str | Path) -> list[Path]:
    """The files of a recording in their order."""
    found = [(int(match[1]), p) for p in Path(folder).iterdir() if (match := NAME.fullmatch(p.name))]
    return [p for _, p in sorted(found)]


def read_recording(folder: str | Path) -> Iterator[Line]:
    """All complete lines of a recording, in the order in which they were written. It may be read while it is written.

    Raises:
        DataError: if the folder is missing, or a line that has its end does not follow the schema.
    """
    if not Path(folder).is_dir():
        raise DataError(f"{folder} is not a folder with a recording (serving.record)")
    for path in recording_files(folder):
        with open(path, "rb") as f:
            for number, line in enumerate(f, 1):
                if not line.endswith(b"\n"):  # of a server that was killed, or is writing it
                    break
                try:
                    yield _LINE.validate_json(line)
                except ValidationError as e:
                    first = e.errors(include_input=False)[0]
                    raise DataError(f"{path}, line {number}, is not a line of a recording: {first['msg']}") from None


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which people liked one better: an example for preference training.

    Attributes:
        prompt: a text, or the messages of a conversation.
    """

    prompt: str | list[dict[str, Any]]
    chosen: str
    rejected: str


def preferences(folder: str | Path) -> Iterator[Preference]:
    """Pairs of answers to the same prompt, one rated good and one rated bad, from all exchanges of a recording.

    The last rating of an answer counts. Every good answer is paired with every bad one.

    Raises:
        DataError: as `read_recording`.
    """
    ratings: dict[tuple[str, int], int] = {}
    for line in read_recording(folder):
        if isinstance(line, RecordedFeedback):
            ratings[line.id, line.index] = line.rating
    good: dict[str, list[str]] = defaultdict(list)
    bad: dict[str, list[str]] = defaultdict(list)
    prompts: dict[str, str | list[dict[str, Any]]] = {}
    for line in read_recording(folder):
        if isinstance(line, RecordedFeedback):
            continue
        for answer in line.answers:
            if not (rating := ratings.get((line.id, answer.index))):
                continue
            prompt = line.request.get("messages") or line.request.get("prompt")
            if isinstance(prompt, list) and "messages" not in line.request:  # several prompts, or token ids
                prompt = prompt[answer.prompt]
            if not isinstance(prompt, str | list):
                continue
            key = repr(prompt)
            prompts[key] = prompt
            (good if rating > 0 else bad)[key].append(answer.text)
    for key, prompt in prompts.items():
        for chosen in good[key]:
            for rejected in bad[key]:
                if chosen != rejected:
                    yield Preference(prompt, chosen, rejected)


def feedback(id: str, index: int, rating: Literal[-1, 0, 1], comment: str | None, key: str | None) -> RecordedFeedback:
    """Feedback that was given now."""
    return RecordedFeedback(id=id, time=time.time(), key=key, index=index, rating=rating, comment=comment)
