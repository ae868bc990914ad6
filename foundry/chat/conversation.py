"""A conversation with one model, apart from how it is shown: its messages, its answers, and what may change them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from foundry.config import FoundryError
from foundry.inference.conversation import Settings
from foundry.inference.request import MAX_SEED, Backend, Delta, Event, Finished, FinishReason, Request, Ticket
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, end_of_turn
from foundry.tokenizers.history import fit_chat, room_for_answer

# A signal that another thread of the process receives does not wake the thread that runs its handler.
HANDLER_SECONDS = 0.1


@dataclass(frozen=True)
class Reply:
    """An answer of the model and where it came from.

    Attributes:
        reason: why it ended: `stop` (by itself), `length` (the limit, or a full context) or `cancelled` (by the user).
        tokens: of the answer, the symbol that ended it included.
        dropped: messages, the oldest ones after the system message, that the model did not read.
        seconds: from the question to the end of the answer.
    """

    text: str
    seed: int
    settings: Settings
    reason: FinishReason
    tokens: int
    dropped: int
    seconds: float


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    reply: Reply


@dataclass
class Conversation:
    """What was said so far. A turn is added only with its answer: after a mistake, nothing has changed.

    Args:
        backend: answers.
        context: tokens that the model reads.
        system: the system message; empty for none, which is not the same as an empty message.
    """

    backend: Backend
    tokenizer: Tokenizer
    context: int
    settings: Settings
    system: str = ""
    turns: list[Exchange] = field(default_factory=list)
    answers: int = 0  # asked for since the beginning; further ones get further seeds
    _ticket: Ticket | None = None  # of the answer that is being written
    _stopped: bool = False

    def messages(self, question: str | None = None) -> list[Message]:
        """The messages so far, and one more of the user."""
        messages = [Message("system", self.system)] if self.system else []
        for turn in self.turns:
            messages += [Message("user", turn.question), Message("assistant", turn.reply.text)]
        return [*messages, Message("user", question)] if question is not None else messages

    def ask(self, question: str, show: Callable[[str], None]) -> Reply:
        """Asks a question.

        An answer that `stop` stops counts as far as it got; without a word of it, the question is taken back.

        Args:
            show: receives the answer in parts.

        Raises:
            ConfigError: (a `ValueError`) if the system message and the question leave no room in the context.
            FoundryError: if the model fails.
        """
        begin, self._stopped = time.monotonic(), False
        messages = self.messages(question)
        room = room_for_answer(self.context, self.settings.tokens)
        fitted = fit_chat(self.tokenizer, messages, self.context, room)
        seed = None if self.settings.seed is None else (self.settings.seed + self.answers) % MAX_SEED
        request = Request(
            tuple(fitted.ids),
            self.settings.sampling,
            max(1, min(self.settings.tokens, self.context - len(fitted.ids))),
            seed,
            stop_ids=end_of_turn(self.tokenizer),
        )
        text, used, end = self._run(request, show)
        self.answers += 1
        reply = Reply(
            text, used, self.settings, end.reason, end.completion_tokens, fitted.dropped, time.monotonic() - begin
        )
        if text or end.reason != "cancelled":
            self.turns.append(Exchange(question, reply))
        return reply

    def again(self, show: Callable[[str], None]) -> Reply | None:
        """Replaces the last answer by another one; None if there is no question yet."""
        if not self.turns:
            return None
        last = self.turns.pop()
        before = len(self.turns)
        try:
            return self.ask(last.question, show)
        finally:
            if len(self.turns) == before:
                self.turns.append(last)

    def stop(self) -> None:
        """Stops the answer that is being written. Callable from a signal's handler and from any thread."""
        self._stopped = True
        if self._ticket is not None:
            self._ticket.cancel()

    def clear(self) -> None:
        """Begins again. The system message stays."""
        self.turns.clear()

    def _run(self, request: Request, show: Callable[[str], None]) -> tuple[str, int, Finished]:
        """The text of the answer, its seed and its end."""
        events: SimpleQueue[Event] = SimpleQueue()
        self._ticket = ticket = self.backend.submit(request, events.put)
        if self._stopped:  # meanwhile
            ticket.cancel()
        parts: list[str] = []
        try:
            while True:
                try:
                    event = events.get(timeout=HANDLER_SECONDS)
                except Empty:
                    continue
                if isinstance(event, Delta) and event.text and not self._stopped:
                    parts.append(event.text)
                    show(event.text)
                elif isinstance(event, Finished):
                    if event.reason == "error":
                        raise FoundryError(event.message)
                    return "".join(parts), ticket.seed, event
        finally:
            self._ticket = None
