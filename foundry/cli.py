"""The command `foundry`: puts the subcommands together, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import io
import signal
import sys

from foundry.commands import (
    adapters,
    chat,
    custody,
    data,
    evaluation,
    export,
    generation,
    parameters,
    registry,
    runs,
    serving,
    study,
    training,
    upkeep,
)
from foundry.commands.arguments import project_of_here
from foundry.config import FoundryError
from foundry.config.version import VERSION
from foundry.utils.extras import missing_package
from foundry.utils.log import setup_logging

TOPICS = (
    parameters,
    training,
    data,
    evaluation,
    generation,
    chat,
    adapters,
    serving,
    registry,
    custody,
    export,
    runs,
    study,
    upkeep,
)
LONGEST = 6000  # characters of an error: an argument may have 100,000, and is often repeated in it


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="foundry",
        description="From raw text to a registered language model. Run it in the project's folder or below.",
    )
    p.add_argument("--version", action="version", version=VERSION)
    subparsers = p.add_subparsers(required=True, metavar="COMMAND")
    for topic in TOPICS:
        topic.add_to(subparsers)
    return p


def main(argv: list[str] | None = None) -> None:
    """Entry point: exit code 0, 1 for a user's mistake, 2 for a wrong command line, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):  # a file's name need not be UTF-8, a terminal need not know every character
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    args = parser().parse_args(argv)
    setup_logging()
    try:
        with contextlib.chdir(project_of_here()):
            args.call(args)
    except FoundryError as e:
        text = str(e)
        print(f"error: {text if len(text) <= LONGEST else f'{text[:LONGEST]} …'}", file=sys.stderr)
        raise SystemExit(1) from None
    except ModuleNotFoundError as e:
        if (missing := missing_package(e)) is None:
            raise
        print(f"error: {missing}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        print("stopped by Ctrl-C", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # `foundry check --describe | head`
        sys.stderr.close()
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
