"""The command `foundry`: puts the subcommands together, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import contextlib

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
from foundry.commands.messages import errors_as_messages, show_every_character
from foundry.config.version import VERSION
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
    show_every_character()
    args = parser().parse_args(argv)
    setup_logging()
    with errors_as_messages(), contextlib.chdir(project_of_here()):
        args.call(args)


if __name__ == "__main__":
    main()
