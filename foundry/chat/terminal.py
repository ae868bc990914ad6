"""The conversation of `foundry chat`: a line is a message, a line that begins with `/` is a command.

On a terminal, prompt_toolkit edits the line: pasted text of several lines stays one message, and former messages come
back with the arrow keys. Over a pipe, each line is a message and is printed with its answer, so that the output can be
read as a conversation. A mistake is reported and changes nothing. Ctrl-C stops an answer, Ctrl-D ends the conversation.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from foundry.chat.conversation import Conversation, Reply
from foundry.chat.example import Turn
from foundry.chat.pieces import on_terminal as coloured
from foundry.chat.pieces import pieces
from foundry.chat.transcript import Speaker, save
from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import PARAMETERS
from foundry.inference.conversation import set_value
from foundry.tokenizers.chat import encode_supervised

PROMPT = "> "
COMMANDS = {
    "/system": "TEXT sets the system message; without a text it removes it",
    "/regenerate": "another answer to the last message",
    "/mask": "the conversation token by token, coloured by what training on it would learn from",
    "/save": "FILE writes the conversation as an example that chat.sources reads",
    "/new": "begins again; the system message stays",
    "/show": "the values that are set",
    "/parameters": "explains every parameter of sampling; /temperature 0.5, /top_k 40, /seed 7, /tokens 100 set one",
    "/help": "this list",
    "/quit": "ends, as Ctrl-D does; Ctrl-C stops an answer",
}
Read = Callable[[], str | None]


@dataclass
class Terminal:
    """Runs a conversation.

    Args:
        read: the next message; None at the end.
        out: where answers go.
        colours: whether `out` understands the colours of a terminal.
    """

    talk: Conversation
    model: Speaker
    read: Read
    out: TextIO
    colours: bool = False

    def run(self) -> None:
        """Until the end of the input, or /quit."""
        self._print(f"{self.model.described()}\nWrite a message; /help lists the commands, Ctrl-D ends.")
        while (line := self.read()) is not None and line.strip() not in ("/quit", "/exit"):
            try:
                if line.startswith("/"):
                    self._command(line.strip())
                elif line.strip():
                    with self._stoppable():
                        reply = self.talk.ask(line, self._show)
                    self._report(reply)
            except FoundryError as e:
                self._print(f"error: {e}")
        self._print("")

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """While the block runs, Ctrl-C stops the answer. It raises nothing, which could come between two statements."""
        before = signal.signal(signal.SIGINT, lambda *_: self.talk.stop())
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _command(self, line: str) -> None:
        name, _, text = line.partition(" ")
        match name:
            case "/system":
                self.talk.system = text.strip()
                self._print("the system message is set" if self.talk.system else "there is no system message")
            case "/regenerate":
                self._regenerate()
            case "/mask":
                self._mask()
            case "/save":
                self._print(f"wrote {save(text.strip(), self.talk, self.model)}")
            case "/new":
                self.talk.clear()
                self._print("a new conversation" + (" with the same system message" if self.talk.system else ""))
            case _:
                self._settings(name, line)

    def _settings(self, name: str, line: str) -> None:
        """A command about values, or help for any other."""
        settings = set_value(self.talk.settings, line, self.talk.tokenizer, self.out)
        if settings is not None:
            self.talk.settings = settings
            if name == "/show" and self.talk.system:
                self._print(f"system = {self.talk.system}")
            return
        if name != "/help":
            self._print(f"error: there is no command {name}")
        self._print("\n".join(f"{command:<12} {what}" for command, what in COMMANDS.items()))

    def _regenerate(self) -> None:
        if self.talk.settings.sampling.greedy:
            raise ConfigError("temperature is 0, so that another answer would be the same: set /temperature 0.7 first")
        with self._stoppable():
            reply = self.talk.again(self._show)
        if reply is None:
            raise ConfigError("there is no message yet that could be answered again")
        self._report(reply)

    def _mask(self) -> None:
        """What a training on this conversation would learn: the answers with their ends."""
        messages = self.talk.messages()
        if not messages:
            raise ConfigError("there is nothing to show yet")
        turns = [Turn(m.role, m.content) for m in messages]
        ids, mask = encode_supervised(self.talk.tokenizer, turns)
        self._print(coloured(pieces(self.talk.tokenizer, ids, mask), self.colours))
        self._print(f"{len(ids)} tokens, of which {sum(map(bool, mask))} would be learnt (the marked ones)")

    def _show(self, text: str) -> None:
        self.out.write(text)
        self.out.flush()

    def _report(self, reply: Reply) -> None:
        """What is worth knowing of an answer besides its text."""
        notes = []
        if reply.dropped:
            notes.append(
                f"the context of {self.talk.context} tokens is full: the oldest {reply.dropped} messages were not read"
                + (", the system message was" if self.talk.system else "")
            )
        if reply.reason == "length":
            full = reply.tokens < reply.settings.tokens
            notes.append(
                "the answer was cut off: "
                + ("the context is full" if full else f"it reached the limit of {reply.settings.tokens} tokens")
            )
        if reply.reason == "cancelled":
            notes.append("stopped" if reply.text else "stopped; the message was taken back")
        self._print("".join(f"\n[{note}]" for note in notes))

    def _print(self, text: str) -> None:
        print(text, file=self.out, flush=True)


def over_pipe(source: TextIO, out: TextIO) -> Read:
    """Reads a line as a message and prints it; a backslash followed by an n is a line end."""

    def read() -> str | None:
        print(PROMPT, end="", file=out, flush=True)
        line = source.readline()
        if not line:
            return None
        print(line.rstrip("\n"), file=out, flush=True)
        return line.rstrip("\n").replace("\\n", "\n")

    return read


def on_terminal(history: Path | None) -> Read:
    """Reads messages with line editing.

    Enter sends, Alt+Enter begins another line, Tab completes a command, the arrow keys bring former messages back.

    Args:
        history: the file of former messages; None: they are forgotten at the end.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.history import FileHistory, InMemoryHistory
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    if history is not None:
        history.parent.mkdir(parents=True, exist_ok=True)
    names = [*COMMANDS, *(f"/{p.name}" for p in PARAMETERS), "/tokens", "/seed"]
    session: PromptSession[str] = PromptSession(
        history=FileHistory(str(history)) if history is not None else InMemoryHistory(),
        completer=WordCompleter(names, sentence=True),
        complete_while_typing=False,
        key_bindings=keys,
        multiline=True,
        prompt_continuation="  ",
    )

    def read() -> str | None:
        while True:
            try:
                return session.prompt(PROMPT)
            except KeyboardInterrupt:  # what was typed is discarded
                print("Ctrl-D ends the conversation", file=sys.stderr)
            except EOFError:
                return None

    return read
