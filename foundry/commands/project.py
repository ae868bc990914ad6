"""Which project a command works in, and what the paths mean that were typed: as git has it.

A command works in the project that the current folder belongs to: the current folder if it has a params.yaml, else the
nearest folder above with params.yaml and dvc.yaml. A path that was typed is relative to where it was typed, if there is
such a file or folder (or if it is one to be made); else it is the project's, as defaults are.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def project_of_here() -> Path:
    """The folder that a command works in; the current one outside of every project, and in what DVC starts."""
    here = Path.cwd()
    if "DVC_ROOT" in os.environ or (here / "params.yaml").exists():
        return here
    above = (p for p in here.parents if (p / "params.yaml").is_file() and (p / "dvc.yaml").is_file())
    return next(above, here)


class TypedPath(argparse.Action):
    """An argument that may name a file or folder: rewritten as the project's folder sees it."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        if values is not self.default:
            values = (
                [self._seen(v) for v in values]
                if isinstance(values, Sequence) and not isinstance(values, str)
                else self._seen(values)
            )
        setattr(namespace, self.dest, values)

    def _seen(self, value: str) -> str:
        return _from_project(value) if os.path.lexists(value) else value


class NewPath(TypedPath):
    """The same for what need not be there yet."""

    def _seen(self, value: str) -> str:
        return _from_project(value)


def _from_project(value: str) -> str:
    root, here = project_of_here(), Path.cwd()
    return value if root == here or not value else os.path.relpath(value, root)
