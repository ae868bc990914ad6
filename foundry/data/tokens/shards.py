"""Token shards: Arrow IPC files that are memory-mapped without a copy, and the index that verifies them.

A row is a document: `tokens` (begin symbol, text, end symbol; uint16, or uint32 when the vocabulary needs it),
`doc_id`, and `n_bytes`, the UTF-8 bytes of the raw text, so that bits per byte never count decoded pieces. A shard
contains documents of one source in their order, as one record batch, so that its tokens are one flat array.
`shard_writer` writes them.

The index (`foundry.data.tokens.index`) contains the hash of every shard. Arrow reads a file with a flipped bit without
an error; `Shards` therefore checks every hash when it opens.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError
from foundry.data.tokens.index import ShardEntry, read_index
from foundry.utils.files import sha256_file


class TokenizedDocument(NamedTuple):
    """A document of a shard: its tokens with begin and end symbol, the bytes of its raw text, its source."""

    tokens: np.ndarray
    n_bytes: int
    source: str


class DocumentSpan(NamedTuple):
    """A document in some tokens of a shard, or the part of it that they contain.

    Attributes:
        first: where the document begins in the shard's tokens.
        begin, end: the tokens of the document that are contained, counted from its begin symbol.
    """

    doc_id: str
    first: int
    begin: int
    end: int


def part_files(folder: str | Path) -> list[Path]:
    """The part files of one clean split, in order.

    Raises:
        DataError: if there are none.
    """
    parts = sorted(Path(folder).glob("part-*.parquet"))
    if not parts:
        raise DataError(f"no part-*.parquet in {folder}: run the clean stage (`dvc repro clean`)")
    return parts


def read_clean(folder: str | Path, columns: list[str], rows: int = 512) -> Iterator[list[dict[str, Any]]]:
    """Groups of documents of one clean split, in the order of its files and rows: the values of `columns`.

    Raises:
        DataError: if there are no part files.
    """
    for part in part_files(folder):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                yield batch.to_pylist()


def read_texts(part: Path) -> Iterator[str]:
    """The documents of one part file, in order."""
    with pq.ParquetFile(part) as file:
        for batch in file.iter_batches(batch_size=512, columns=["text"]):
            yield from batch.column(0).to_pylist()


class Shards:
    """The shards of one split, opened and verified.

    Args:
        folder: `data/shards`.
        split: `train`, `val` or `test`.
        tokenizer_sha256: hash of the tokenizer that will read the tokens; checked when it is given.

    Attributes:
        folder, split: where it was opened.
        index: of all splits.
        entries: the index's entry of each shard of the split.
        tokens: a flat read-only array of each shard's tokens, in the index's order (memory-mapped).
        offsets: where each document of each shard begins in `tokens`, and the end: int32 (documents + 1,).

    Raises:
        DataError: if the index or a shard is missing, of another format, changed, or of another tokenizer.
    """

    def __init__(self, folder: str | Path, split: str, *, tokenizer_sha256: str | None = None) -> None:
        folder = Path(folder)
        self.index = read_index(folder)
        made_with = self.index.tokenizer_sha256
        if tokenizer_sha256 not in (None, made_with):
            raise DataError(
                f"{folder} was made with the tokenizer {made_with[:12]}…, not with {tokenizer_sha256[:12]}…: "
                "run `dvc repro shard`"
            )
        self.folder, self.split = folder, split
        self.entries = self.index.splits[split].shards
        self._batches = [_open(folder / split / entry.file, entry) for entry in self.entries]
        columns = [b.column("tokens") for b in self._batches]
        # Not `to_numpy`, which imports pandas (0.3 s) where it is installed; neither copies.
        self.tokens: list[np.ndarray] = [np.from_dlpack(c.values) for c in columns]
        self.offsets: list[np.ndarray] = [np.from_dlpack(c.offsets) for c in columns]

    def documents_at(self, shard: int, first: int, count: int) -> Iterator[DocumentSpan]:
        """The documents in `count` tokens of a shard, from its token `first`."""
        offsets = self.offsets[shard]
        ids = self._batches[shard].column("doc_id")
        for d in range(int(np.searchsorted(offsets, first, side="right")) - 1, len(ids)):
            begin, end = int(offsets[d]), int(offsets[d + 1])
            if begin >= first + count:
                return
            yield DocumentSpan(ids[d].as_py(), begin, max(first, begin) - begin, min(first + count, end) - begin)

    def doc_ids(self) -> list[str]:
        """The id of each document, in the order of `documents`."""
        return [i for batch in self._batches for i in batch.column("doc_id").to_pylist()]

    def documents(self) -> Iterator[TokenizedDocument]:
        """The documents of the split, in order."""
        for batch, flat, offsets, entry in zip(self._batches, self.tokens, self.offsets, self.entries, strict=True):
            for i, n_bytes in enumerate(batch.column("n_bytes").to_pylist()):
                yield TokenizedDocument(flat[offsets[i] : offsets[i + 1]], n_bytes, entry.source)


def _open(path: Path, entry: ShardEntry) -> pa.RecordBatch:
    if not path.is_file():
        raise DataError(f"{path} is missing: run `dvc checkout` or `dvc repro shard`")
    seen = sha256_file(path)
    if seen != entry.sha256:
        raise DataError(
            f"{path} was changed after it was written (sha256 {seen[:12]}…, the index says {entry.sha256[:12]}…): "
            "`foundry verify --repair` restores it, or names the stage that builds it again"
        )
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
