"""A small conversation on a terminal: a line is a prompt, a line that starts with `/` sets a value.

Mistakes are told and the conversation goes on; Ctrl-C stops one continuation, Ctrl-D or /quit the conversation.
A backslash and an n in a prompt are a line end.
"""

from __future__ import annotations

import sys
from typing import TextIO

from foundry.config import ConfigError
from foundry.inference.generator import Generator
from foundry.inference.sampling import Sampling

HELP = (
    "type a text to continue it (\\n is a line end); /temperature 0.8, /top_k 40, /top_p 0.95, /tokens 120 and /seed 7 "
    "set values, /seed none draws a fresh seed each time, /show tells the values; /quit or Ctrl-D ends"
)


def converse(generator: Generator, source: TextIO | None = None, out: TextIO | None = None) -> None:
    """Runs the conversation over two streams (default: standard input and output, with line editing on a terminal)."""
    terminal = source is None and sys.stdin.isatty()
    source, out = source or sys.stdin, out or sys.stdout
    if terminal:
        import readline  # noqa: F401 - its import gives input() line editing and a history
    values: dict[str, float | int | None] = {"temperature": 0.8, "top_k": 0, "top_p": 0.95, "tokens": 120, "seed": None}
    print(HELP, file=out)
    while (line := _read(source, out, terminal)) is not None and line.strip() not in ("/quit", "/exit"):
        try:
            if line.startswith("/"):
                _set(values, line, out)
            elif line:
                _continue(generator, line.replace("\\n", "\n"), values, out)
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


def _continue(generator: Generator, prompt: str, values: dict, out: TextIO) -> None:
    options = {"max_new_tokens": values["tokens"], **{k: v for k, v in values.items() if k != "tokens"}}
    pieces = generator.stream(prompt, **options)
    context = generator.model.cfg.max_seq_len
    length = len(generator.tokenizer.encode(prompt, bos=True))
    if length + values["tokens"] > context:
        print(
            f"note: {length} tokens of prompt and {values['tokens']} new ones are more than the context of {context}: "
            f"when it is full, the model goes on from the last {context // 2} tokens",
            file=out,
        )
    for piece in pieces:
        print(piece, end="", file=out, flush=True)
    print(file=out)


def _set(values: dict, line: str, out: TextIO) -> None:
    name, _, text = line[1:].strip().partition(" ")
    if name == "show":
        print(", ".join(f"{k} = {v}" for k, v in values.items()), file=out)
        return
    if name not in values:
        print(HELP, file=out)
        return
    kind = float if name in ("temperature", "top_p") else int
    new = {**values, name: None if name == "seed" and text == "none" else kind(text)}
    Sampling(new["temperature"], new["top_k"], new["top_p"])
    if new["tokens"] < 1:
        raise ConfigError(f"tokens must be at least 1, got {new['tokens']}")
    if new["seed"] is not None and new["seed"] < 0:
        raise ConfigError(f"seed must be none or at least 0, got {new['seed']}")
    values.update(new)
    print(f"{name} = {values[name]}", file=out)
