"""`index.json` of the token shards: one schema for its writer and its readers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from foundry.config import DataError
from foundry.utils.files import read_json, sha256_json, write_json
from foundry.utils.records import Record

FORMAT = 2
NAME = "index.json"


class ShardEntry(Record):
    """One shard.

    Attributes:
        file: its name in the folder of the split.
        bytes: of the raw text of its documents, in UTF-8.
        weight: how often an epoch reads its source.
    """

    file: str
    sha256: str
    source: str
    documents: int
    tokens: int
    bytes: int
    weight: float


class SplitEntry(Record):
    """The shards of one split in their order, and their totals.

    Attributes:
        epoch_tokens: tokens of an epoch: those of each source times its weight.
    """

    documents: int
    tokens: int
    bytes: int
    epoch_tokens: int
    shards: list[ShardEntry]


class ShardIndex(Record):
    """The whole index.

    Attributes:
        dtype: of the tokens, `uint16` or `uint32`.
        vocab_size, tokenizer_sha256: of the tokenizer that encoded the text.
        splits: by name: train, val, test.
    """

    format: int = FORMAT
    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    splits: dict[str, SplitEntry]

    @property
    def sha256(self) -> str:
        """Hash of the index, and through its hashes of every shard: the identity of the data."""
        return sha256_json(self.model_dump())

    @property
    def identity(self) -> dict[str, str]:
        """The hashes that every batch depends on, by name."""
        return {"index_sha256": self.sha256, "tokenizer_sha256": self.tokenizer_sha256}

    def file_hashes(self) -> dict[str, str]:
        """{path of a shard in the folder: its sha256}."""
        return {f"{name}/{s.file}": s.sha256 for name, split in self.splits.items() for s in split.shards}

    def write(self, folder: str | Path) -> None:
        write_json(Path(folder) / NAME, self.model_dump())


def read_index(folder: str | Path) -> ShardIndex:
    """The index of a folder of shards.

    Raises:
        DataError: if it is missing, not readable, of another format, or lacks a value.
    """
    path = Path(folder) / NAME
    value: Any = read_json(path, "the index of the token shards; run `dvc repro shard`", DataError)
    seen = value.get("format") if isinstance(value, dict) else None
    if seen != FORMAT:
        raise DataError(f"{path} has format {seen!r}; this version reads {FORMAT}: run `dvc repro shard`")
    try:
        return ShardIndex.model_validate(value)
    except ValidationError as e:
        first = e.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise DataError(
            f"{path} is not an index of token shards: {place}: {first['msg']}. Run `dvc checkout` or `dvc repro shard`"
        ) from None


class SourceTotal(NamedTuple):
    """Tokens of a source, and how often an epoch reads them."""

    tokens: int
    weight: float

    @property
    def epoch_tokens(self) -> int:
        return round(self.tokens * self.weight)


def source_totals(shards: list[ShardEntry]) -> dict[str, SourceTotal]:
    """The total of each source, in the order of the shards."""
    totals: dict[str, SourceTotal] = {}
    for shard in shards:
        before = totals[shard.source].tokens if shard.source in totals else 0
        totals[shard.source] = SourceTotal(before + shard.tokens, shard.weight)
    return totals
