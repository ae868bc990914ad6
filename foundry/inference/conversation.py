"""A conversation on a terminal: a line is a prompt, a line that starts with `/` sets a value.

Mistakes are reported and the conversation continues. Ctrl-C stops a continuation, Ctrl-D or /quit ends the
conversation. A backslash followed by an n in a prompt is a line end.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields, replace
from typing import TextIO

from foundry.config import ConfigError
from foundry.config.sampling import Sampling
from foundry.inference.generator import Generator

HELP = (
    "type a text to continue it (\\n is a line end); /temperature 0.8, /top_k 40, /top_p 0.95, /tokens 120 and /seed 7 "
    "set values, /seed none draws a fresh seed each time, /show prints the values; /quit or Ctrl-D ends"
)


@dataclass(frozen=True)
class Settings:
    """How a continuation is written.

    Args:
        tokens: how many new tokens at most.
        seed: None draws a fresh one each time.

    Raises:
        ConfigError: (a `ValueError`) with the rule that a value breaks.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 0.95
    tokens: int = 120
    seed: int | None = None

    def __post_init__(self) -> None:
        Sampling(self.temperature, self.top_k, self.top_p)
        if self.tokens < 1:
            raise ConfigError(f"tokens must be at least 1, got {self.tokens}")
        if self.seed is not None and self.seed < 0:
            raise ConfigError(f"seed must be none or at least 0, got {self.seed}")

    def changed(self, name: str, text: str) -> Settings:
        """The settings with another value, given as text."""
        if name == "seed" and text == "none":
            return replace(self, seed=None)
        kind, needed = (float, "a number") if name in ("temperature", "top_p") else (int, "an integer")
        try:
            value = kind(text)
        except ValueError:
            raise ConfigError(f"{name} must be {needed}, got {text!r}") from None
        return replace(self, **{name: value})


def converse(generator: Generator, source: TextIO | None = None, out: TextIO | None = None) -> None:
    """Runs the conversation over two streams (default: standard input and output, with line editing on a terminal)."""
    terminal = source is None and sys.stdin.isatty()
    source, out = source or sys.stdin, out or sys.stdout
    if terminal:
        import readline  # noqa: F401 - its import gives input() line editing and a history
    settings = Settings()
    print(HELP, file=out)
    while (line := _read(source, out, terminal)) is not None and line.strip() not in ("/quit", "/exit"):
        try:
            if line.startswith("/"):
                settings = _command(settings, line, out)
            elif line:
                _continue(generator, line.replace("\\n", "\n"), settings, out)
        except ValueError as e:
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
    pieces = generator.stream(
        prompt,
        max_new_tokens=settings.tokens,
        temperature=settings.temperature,
        top_k=settings.top_k,
        top_p=settings.top_p,
        seed=settings.seed,
    )
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


def _command(settings: Settings, line: str, out: TextIO) -> Settings:
    """Runs a line that starts with `/`; returns the settings from then on."""
    name, _, text = line[1:].strip().partition(" ")
    if name == "show":
        print(", ".join(f"{k} = {v}" for k, v in asdict(settings).items()), file=out)
        return settings
    if name not in {f.name for f in fields(Settings)}:
        print(HELP, file=out)
        return settings
    settings = settings.changed(name, text)
    print(f"{name} = {getattr(settings, name)}", file=out)
    return settings
