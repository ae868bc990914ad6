"""A conversation on a terminal: a line is a prompt, a line that starts with `/` sets a value.

Mistakes are reported and the conversation continues. Ctrl-C stops a continuation, Ctrl-D or /quit ends the
conversation. A backslash followed by an n in a prompt is a line end.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TextIO

from foundry.config import ConfigError, FoundryError
from foundry.config.sampling import PARAMETER, PARAMETERS, READING, Sampling
from foundry.inference.generator import Generator
from foundry.inference.penalties import forms_of
from foundry.tokenizers import Tokenizer

HELP = (
    "type a text to continue it (\\n is a line end); /temperature 0.8, /top_k 40, /top_p 0.95, /tokens 120 and /seed 7 "
    "set values, /seed none draws a fresh seed each time, /show prints the values, /parameters explains all of them; "
    "/quit or Ctrl-D ends"
)


def changed(how: Sampling, texts: Mapping[str, str], tokenizer: Tokenizer) -> Sampling:
    """Sampling parameters with other values, which are given as text by their names.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks.
    """
    values = {name: PARAMETER[name].parsed(text) for name, text in texts.items()}
    for name, value in values.items():
        if PARAMETER[name].kind == "words":
            values[name] = [ids for word in value for ids in forms_of(word, tokenizer)]
    return replace(how, **values)


@dataclass(frozen=True)
class Settings:
    """How a continuation is written.

    Args:
        tokens: how many new tokens at most.
        seed: None draws a fresh one each time.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks.
    """

    sampling: Sampling = READING
    tokens: int = 120
    seed: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ConfigError(f"tokens must be at least 1, got {self.tokens}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must be none or at least 0, got {self.seed}")

    def changed(self, name: str, text: str, tokenizer: Tokenizer) -> Settings:
        """The settings with another value, given as text."""
        if name in PARAMETER:
            return replace(self, sampling=changed(self.sampling, {name: text}, tokenizer))
        if name == "seed" and text == "none":
            return replace(self, seed=None)
        try:
            value = int(text)
        except ValueError:
            raise ConfigError(f"{name} must be an integer, got {text!r}") from None
        return replace(self, **{name: value})

    def value(self, name: str) -> object:
        return getattr(self.sampling if name in PARAMETER else self, name)

    def shown(self) -> str:
        """The values in one line: those that everybody sets, and others that were changed."""
        usual = ("temperature", "top_k", "top_p")
        names = [p.name for p in PARAMETERS if p.name in usual or self.value(p.name) != p.default]
        return ", ".join(f"{name} = {self.value(name)}" for name in (*names, "tokens", "seed"))


def converse(
    generator: Generator,
    source: TextIO | None = None,
    out: TextIO | None = None,
    settings: Settings | None = None,
) -> None:
    """Runs the conversation over two streams (default: standard input and output, with line editing on a terminal)."""
    terminal = source is None and sys.stdin.isatty()
    source, out = source or sys.stdin, out or sys.stdout
    if terminal:
        import readline  # noqa: F401 - its import gives input() line editing and a history
    settings = settings or Settings()
    print(HELP, file=out)
    while (line := _read(source, out, terminal)) is not None and line.strip() not in ("/quit", "/exit"):
        try:
            if line.startswith("/"):
                settings = set_value(settings, line, generator.tokenizer, out) or _help(settings, out)
            elif line:
                _continue(generator, line.replace("\\n", "\n"), settings, out)
        except FoundryError as e:
            print(f"error: {e}", file=out)
        except KeyboardInterrupt:
            print("\nstopped", file=out)
    print(file=out)


def _read(source: TextIO, out: TextIO, terminal: bool) -> str | None:
    """The next line without its end; None at the end of input."""
    try:
        if terminal:
            return input("> ")
        print("> ", end="", file=out, flush=True)
        line = source.readline()
        return line.rstrip("\n") if line else None
    except (EOFError, KeyboardInterrupt):
        return None


def _continue(generator: Generator, prompt: str, settings: Settings, out: TextIO) -> None:
    pieces = generator.stream(prompt, max_new_tokens=settings.tokens, seed=settings.seed, **asdict(settings.sampling))
    context = generator.model.cfg.max_seq_len
    length = len(generator.tokenizer.encode(prompt, bos=True))
    if length + settings.tokens > context:
        print(
            f"note: {length} tokens of prompt and {settings.tokens} new ones are more than the context of {context}: "
            f"when it is full, the model continues from the last {context // 2} tokens",
            file=out,
        )
    for piece in pieces:
        print(piece, end="", file=out, flush=True)
    print(file=out)


def _help(settings: Settings, out: TextIO) -> Settings:
    print(HELP, file=out)
    return settings


def set_value(settings: Settings, line: str, tokenizer: Tokenizer, out: TextIO) -> Settings | None:
    """Runs a line that starts with `/` if it sets, shows or explains values.

    Returns:
        The settings from then on; None if the line is about something else.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks.
    """
    name, _, text = line[1:].strip().partition(" ")
    match name:
        case "show":
            print(settings.shown(), file=out)
        case "parameters":
            for p in PARAMETERS:
                print(f"/{p.name}: {p.text} It must be {p.rule}.", file=out)
        case _ if name in {"tokens", "seed", *PARAMETER}:
            settings = settings.changed(name, text, tokenizer)
            print(f"{name} = {settings.value(name)}", file=out)
        case _:
            return None
    return settings
