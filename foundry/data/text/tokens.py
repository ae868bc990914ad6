"""The tokens of documents as numbers: what the published quality rules count, without a list of strings per document.

Every distinct run of characters between white space is divided into tokens once (see `words.tokens`) and gets a number.
A document is then an array of such numbers, and its counts are sums over arrays.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from foundry.data.text.runs import RunTable
from foundry.data.text.words import spaced_runs, tokens

MAX_TOKENS = 1 << 22  # of the runs of a table; bounds the memory for an endless stream of texts
_LONGEST = 255  # characters of a token that count


class _Table(RunTable):
    """What is known of each run and of each distinct token.

    Attributes:
        sums, alphabetic: of each run two numbers in one, in the upper and the lower 32 bits: tokens, and those with a
            letter or digit; the characters of the latter, and tokens with a letter.
        begins: of each run, where its tokens begin in `numbers`, the numbers of the tokens of all runs; and the end.
        lengths: of each distinct token.
    """

    def __init__(self) -> None:
        super().__init__()
        self.sums, self.alphabetic = array("q"), array("q")
        self.begins, self.numbers = array("q", [0]), array("q")
        self.lengths = array("q")
        self._shapes = array("q")  # of each distinct token the two numbers, of which `sums` and `alphabetic` are sums
        self._of_name: dict[str, int] = {}

    @property
    def full(self) -> bool:
        return super().full or len(self.numbers) > MAX_TOKENS

    def add(self, run: bytes) -> None:
        sums = alphabetic = 0
        for token in tokens(run.decode("utf-8", "surrogatepass")):
            if (number := self._of_name.get(token)) is None:
                number = self._add_token(token)
            self.numbers.append(number)
            sums += self._shapes[2 * number]
            alphabetic += self._shapes[2 * number + 1]
        self.sums.append(sums)
        self.alphabetic.append(alphabetic)
        self.begins.append(len(self.numbers))

    def _add_token(self, token: str) -> int:
        number = self._of_name[token] = len(self._of_name)
        word, chars = any(map(str.isalnum, token)), min(len(token), _LONGEST)
        self._shapes.extend((1 << 32 | word, word * chars << 32 | any(map(str.isalpha, token))))
        self.lengths.append(len(token))
        return number

    def number(self, token: str) -> int | None:
        """The number of a token; None if no run contained it."""
        return self._of_name.get(token)


_table = _Table()


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of one document.

    Attributes:
        count: how many there are.
        words: how many have a letter or a digit; `chars`: characters of those, of each at most 255.
        alpha: how many have a letter.
    """

    count: int
    words: int
    chars: int
    alpha: int
    _text: str
    _runs: np.ndarray  # their numbers
    _table: _Table

    def first_runs(self, most: int) -> list[str]:
        """The first runs of characters between white space, of which the tokens are parts."""
        return self._text.split(None, most)[:most]

    def among(self, names: Iterable[str]) -> int:
        """How many of some distinct names are tokens of the document."""
        ((numbers, _),) = numbered([self])
        wanted = (n for name in names if (n := self._table.number(name)) is not None)
        return sum(bool((numbers == n).any()) for n in wanted)


def numbered(documents: list[Tokens]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(numbers, characters) of the tokens of each document that one call of `read_tokens` gave: int64 (count,).

    Equal tokens have equal numbers.
    """
    if not documents:
        return []
    table = documents[0]._table
    runs = np.concatenate([d._runs for d in documents])
    begins = np.frombuffer(table.begins, np.int64)
    first = begins[runs]
    counts = begins[runs + 1] - first
    ends = np.cumsum(counts)
    places = np.repeat(first - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)
    numbers = np.frombuffer(table.numbers, np.int64)[places]
    lengths = np.frombuffer(table.lengths, np.int64)[numbers]
    cuts = accumulate((d.count for d in documents), initial=0)
    return [(numbers[a:b], lengths[a:b]) for a, b in pairwise(cuts)]


def read_tokens(texts: list[str]) -> list[Tokens]:
    """The tokens of each text."""
    global _table
    if _table.full:
        _table = _Table()  # earlier documents keep theirs
    runs = _table.read([spaced_runs(text).encode("utf-8", "surrogatepass") for text in texts])
    columns = []
    for pairs in (_table.sums, _table.alphabetic):
        sums = np.zeros(len(runs.numbers) + 1, np.int64)
        np.cumsum(np.frombuffer(pairs, np.int64)[runs.numbers], out=sums[1:])
        of_texts = np.diff(sums[runs.ends])
        columns += [(of_texts >> 32).tolist(), (of_texts & 0xFFFFFFFF).tolist()]
    return [
        Tokens(*of_text, text, runs.numbers[start:end], _table)
        for *of_text, text, (start, end) in zip(*columns, texts, pairwise(runs.ends.tolist()), strict=True)
    ]
