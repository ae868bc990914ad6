"""What the commands have in common: their place in the parser, the project they work in, and what typed paths mean.

As with git, a command works in the project that the current folder belongs to: the current folder if it has a
params.yaml, else the nearest folder above with params.yaml and dvc.yaml. A path that was typed is relative to the
folder where it was typed, if such a file or folder exists there (or if it will be created); otherwise it is relative to
the project, as defaults are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

# What `ArgumentParser.add_subparsers` returns; argparse has no public name for it.
Subparsers: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_command(
    subparsers: Subparsers, name: str, call: Callable[[argparse.Namespace], None], text: str, *, params: bool = True
) -> argparse.ArgumentParser:
    """Adds a subcommand.

    Args:
        call: does the work; receives the parsed arguments.
        text: one sentence for the help, without a full stop.
        params: whether the command reads the parameter file and has the option --params.
    """
    end = "" if text.endswith("?") else "."
    parser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + end)
    parser.set_defaults(call=call)
    if params:
        text = "parameter file (default: %(default)s)"
        parser.add_argument("--params", action=TypedPath, default="params.yaml", help=text)
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one line of JSON")


def project_of_here() -> Path:
    """The folder that a command works in: the current one outside of every project, and in what DVC starts."""
    here = Path.cwd()
    if "DVC_ROOT" in os.environ or (here / "params.yaml").exists():
        return here
    above = (p for p in here.parents if (p / "params.yaml").is_file() and (p / "dvc.yaml").is_file())
    return next(above, here)


class TypedPath(argparse.Action):
    """An argument that may name a file or folder: rewritten so that it means the same from the project's folder."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values is not self.default:
            several = isinstance(values, Sequence) and not isinstance(values, str)
            values = [self._rewritten(v) for v in values] if several else self._rewritten(values)
        setattr(namespace, self.dest, values)

    def _rewritten(self, value: str) -> str:
        return _from_project(value) if os.path.lexists(value) else value


class NewPath(TypedPath):
    """The same for a file or folder that need not exist yet."""

    def _rewritten(self, value: str) -> str:
        return _from_project(value)


def _from_project(value: str) -> str:
    root, here = project_of_here(), Path.cwd()
    return value if root == here or not value else os.path.relpath(value, root)
