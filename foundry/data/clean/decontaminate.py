"""Evaluation text in the training text, found by shared 13-grams of words (Brown et al. 2020, appendix C).

Evaluation sets are files of the user: `.txt` (the text of a set) or `.jsonl` (every string value of a record is a text
of its own). A text shorter than the n-gram has no n-gram and cannot be found.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from foundry.config import ConfigError
from foundry.data.text.grams import hashes_of_numbers, stream_words
from foundry.utils.inputs import find_inputs


class Contamination:
    """The n-grams of the evaluation sets.

    Args:
        patterns: globs relative to `root`.
        n: words of an n-gram.

    Raises:
        ConfigError: if a pattern matches no file, or a file is of another kind or cannot be read.
    """

    def __init__(self, patterns: list[str], root: Path, n: int) -> None:
        self.n = n
        found = [np.empty(0, np.uint64)]
        for path in (p for pattern in patterns for p in find_inputs(pattern, root, "clean.decontaminate")):
            for words in stream_words(_texts(path)):
                if len(words.numbers) >= n:
                    found.append(hashes_of_numbers(words.numbers, n))
        self._grams = np.unique(np.concatenate(found))

    def shared(self, numbers: np.ndarray) -> int:
        """How many of a document's n-grams the evaluation sets contain.

        Args:
            numbers: the `word_numbers` of the document.
        """
        if len(numbers) < self.n or not len(self._grams):
            return 0
        return int(np.isin(hashes_of_numbers(numbers, self.n), self._grams).sum())


def _texts(path: Path) -> Iterator[str]:
    if path.suffix not in (".txt", ".jsonl"):
        raise ConfigError(f"clean.decontaminate: {path} is neither .txt nor .jsonl")
    try:
        content = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise ConfigError(f"clean.decontaminate: {path} is not UTF-8 (byte {e.start}); save it as UTF-8") from None
    if path.suffix == ".txt":
        yield content
        return
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            try:
                yield from _strings(json.loads(line))
            except ValueError as e:
                raise ConfigError(f"clean.decontaminate: {path}, line {number} is not JSON ({e})") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for v in value.values() if isinstance(value, dict) else value:
            yield from _strings(v)
