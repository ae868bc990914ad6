"""Multiple-choice questions, and the user's own files of them (JSON lines).

Imports no torch, so that `foundry check` can read the files before any work is done.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.utils.inputs import find_inputs

FIELDS = {"context": str, "choices": list, "label": int}


@dataclass(frozen=True)
class Question:
    """Which of the choices follows the context?

    Attributes:
        label: index of the right choice.
    """

    id: str
    context: str
    choices: tuple[str, ...]
    label: int


def read_task_files(patterns: Sequence[str], root: Path) -> dict[str, list[Question]]:
    """Reads the files of `evaluate.task_files`.

    Args:
        patterns: globs relative to `root`.

    Returns:
        {name of the file without its suffix: its questions}.

    Raises:
        ConfigError: if a pattern matches no file.
        DataError: see `read_questions`.
    """
    paths = [path for pattern in patterns for path in find_inputs(pattern, root, "evaluate.task_files")]
    return {path.stem: read_questions(path) for path in paths}


def read_questions(path: Path) -> list[Question]:
    """Reads one file: one JSON object per line.

    Raises:
        DataError: naming the line and the field that is missing or wrong.
    """
    out: list[Question] = []
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f"{path} cannot be read as UTF-8 text: {e}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as e:
            raise DataError(f"{path}, line {number} is not JSON: {e}") from None
        if problem := _problem(row):
            raise DataError(f"{path}, line {number}: {problem}; a question is {{context, choices, label}}")
        out.append(Question(str(row.get("id", number)), row["context"], tuple(row["choices"]), row["label"]))
    if not out:
        raise DataError(f"{path} contains no question: add lines of {{context, choices, label}} or remove the file")
    return out


def _problem(row: Any) -> str | None:
    """What is wrong with a parsed line; None if it is a question."""
    if not isinstance(row, dict):
        return f"is {type(row).__name__}, not an object"
    for name, kind in FIELDS.items():
        if name not in row:
            return f"has no field {name!r} (it has {', '.join(map(repr, row)) or 'none'})"
        if not isinstance(row[name], kind) or isinstance(row[name], bool):
            return f"{name!r} is {row[name]!r:.60}, not {kind.__name__}"
    if len(row["choices"]) < 2 or not all(isinstance(c, str) and c for c in row["choices"]):
        return "'choices' must be two or more texts that are not empty"
    if not 0 <= row["label"] < len(row["choices"]):
        return f"'label' is {row['label']}, there are {len(row['choices'])} choices counted from 0"
    return None
