"""Multiple-choice questions in files of the user's own: JSON lines. Needs no torch, so that they can be checked before any work."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.config import DataError

FIELDS = {"context": str, "choices": list, "label": int}


@dataclass(frozen=True)
class Question:
    id: str
    context: str
    choices: tuple[str, ...]
    label: int


def read_questions(path: Path) -> list[Question]:
    """A file of the user's own, one JSON object a line.

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
        raise DataError(f"{path} holds no question")
    return out


def _problem(row: Any) -> str | None:
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
