"""What the tasks of a corpus are made from: its documents with the fields that were kept beside their texts."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundry.chat.tasks.base import Made, Origin
from foundry.data.fields import read_fields
from foundry.data.splits import SPLITS
from foundry.data.tokens.shards import read_clean

WORD_BYTES = 32 << 20  # of training text that the words are counted in
_WORD = re.compile(r"\b[a-z]{3,7}\b")


@dataclass(frozen=True)
class Entry:
    """A document with the fields of its record.

    Attributes:
        text: the clean text.
        fields: by name, without those that the record lacks.
    """

    origin: Origin
    text: str
    fields: dict[str, Any]

    def field(self, name: str) -> str:
        """A field that is text; empty if there is none."""
        value = self.fields.get(name)
        return value.strip() if isinstance(value, str) else ""

    def items(self, name: str) -> list[str]:
        """A field that is a list of texts, each on one line; empty if it is none, or one of them is empty."""
        value = self.fields.get(name)
        if not isinstance(value, list) or not all(isinstance(x, str) and x.strip() for x in value):
            return []
        return [" ".join(x.split()) for x in value]


def read_entries(clean: Path, fields: Path, licenses: dict[str, str]) -> list[Entry]:
    """The documents that have fields, in the order of the splits.

    Args:
        clean: the folder of the clean documents.
        fields: the folder of their side table.
        licenses: of the sources, by name.

    Raises:
        DataError: if a table is missing or damaged.
    """
    entries = []
    for split in SPLITS:
        found = {item.doc_id: item for item in read_fields(fields, split)}
        if not found:
            continue
        for rows in read_clean(clean / split, ["doc_id", "text"]):
            for row in rows:
                if item := found.get(row["doc_id"]):
                    origin = Origin(split, item.doc_id, item.source, licenses.get(item.source, "unknown"))
                    entries.append(Entry(origin, row["text"], item.fields))
    return entries


def without_held_out_titles(entries: list[Entry], made: Made, task: str) -> list[Entry]:
    """Leaves out training entries whose title a held-out entry has: their questions would be those of the test."""
    held_out = {e.field("title").casefold() for e in entries if e.origin.split != "train"}
    kept = [e for e in entries if e.origin.split != "train" or e.field("title").casefold() not in held_out]
    if len(kept) < len(entries):
        made.drop(task, "title_is_held_out", len(entries) - len(kept))
    return kept


def common_words(clean: Path, least: int = 10) -> list[str]:
    """Lower-case words of 3 to 7 letters that the training text has at least that often, in alphabetical order."""
    counts, size = Counter[str](), 0
    for rows in read_clean(clean / "train", ["text"]):
        for row in rows:
            counts.update(_WORD.findall(row["text"]))
            size += len(row["text"])
        if size >= WORD_BYTES:
            break
    return sorted(word for word, n in counts.items() if n >= least)


_NO_END = re.compile(
    r"(?:\b(?:[A-Z]|St|Dr|Mr|Mrs|Ms|Jr|Sr|Mt|Lt|Gen|Col|Capt|Rev|No|vs|ca|c|fl|lit|approx)|\.[A-Za-z])\.$"
)


def sentences(text: str) -> list[str]:
    """The sentences of a paragraph; initials and common abbreviations do not end one."""
    out: list[str] = []
    for piece in re.split(r"(?<=[.!?])\s+(?=[\"“(]?[A-Z0-9])", text.strip()):
        if out and _NO_END.search(out[-1]):
            out[-1] += " " + piece
        else:
            out.append(piece)
    return out
