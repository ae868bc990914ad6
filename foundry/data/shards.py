"""Token shards: Arrow IPC files that are memory-mapped without a copy, and the index that proves them.

A row is a document: `tokens` (begin symbol, text, end symbol; uint16, or uint32 when the vocabulary needs it), `doc_id`, and
`n_bytes`, the UTF-8 bytes of the raw text, so that bits per byte never count decoded pieces. A shard holds documents of one
source in their order, as one record batch, so that its tokens are one flat array.

`index.json` holds each shard's hash, source, counts and how often it counts in an epoch, the tokenizer's hash and the totals. Arrow
reads a file with a flipped bit without a word; `Shards` therefore checks every hash when it opens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from foundry.config import DataError, Shard
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_dir, atomic_write, read_json, sha256_file, sha256_json, write_json

FORMAT = 1
SPLITS = ("train", "val", "test")


def read_clean(folder: str | Path, columns: list[str], rows: int = 512) -> Iterator[list[dict[str, Any]]]:
    """Groups of documents of one clean split, in the order of its files and rows.

    Raises:
        DataError: if there are no part files.
    """
    parts = sorted(Path(folder).glob("part-*.parquet"))
    if not parts:
        raise DataError(f"no part-*.parquet in {folder}: run the clean stage (`dvc repro clean`)")
    for part in parts:
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                yield batch.to_pylist()


def write_shards(
    clean: str | Path,
    tokenizer: Tokenizer,
    params: Shard,
    out: str | Path,
    advance: Callable[[int], object] = lambda n: None,
) -> dict[str, Any]:
    """Tokenizes the clean splits into `out` and returns the index.

    Args:
        advance: called with the number of documents just written.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    index: dict[str, Any] = {
        "format": FORMAT, "dtype": dtype, "vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer.sha256, "splits": {},
    }  # fmt: skip
    with atomic_dir(out) as tmp:
        for split in SPLITS:
            folder = tmp / split
            folder.mkdir()
            shards = [
                _write_shard(folder / f"shard-{i:05d}.arrow", source, documents, dtype)
                for i, (source, documents) in enumerate(
                    _groups(Path(clean) / split, tokenizer, params.tokens_per_shard, advance)
                )
            ]
            for s in shards:
                s["repeat"] = params.repeats.get(s["source"], 1) if split == "train" else 1
            totals = {key: sum(s[key] for s in shards) for key in ("documents", "tokens", "bytes")}
            totals["epoch_tokens"] = sum(s["tokens"] * s["repeat"] for s in shards)
            index["splits"][split] = {**totals, "shards": shards}
        write_json(tmp / "index.json", index)
    return index


def _groups(
    folder: Path, tokenizer: Tokenizer, limit: int, advance: Callable[[int], object]
) -> Iterator[tuple[str, list[tuple[list[int], str, int]]]]:
    """(source, documents) of each shard: a new one when the source changes or `limit` tokens are reached."""
    source, documents, tokens = "", [], 0
    for rows in read_clean(folder, ["text", "doc_id", "n_bytes", "source"]):
        encoded = tokenizer.encode_batch([r["text"] for r in rows], threads=2)
        for row, ids in zip(rows, encoded, strict=True):
            if documents and (row["source"] != source or tokens >= limit):
                yield source, documents
                documents, tokens = [], 0
            source = row["source"]
            ids = [tokenizer.bos_id, *ids, tokenizer.eos_id]
            documents.append((ids, row["doc_id"], row["n_bytes"]))
            tokens += len(ids)
        advance(len(rows))
    if documents:
        yield source, documents


def _write_shard(path: Path, source: str, documents: list[tuple[list[int], str, int]], dtype: str) -> dict[str, Any]:
    lengths = np.fromiter((len(d[0]) for d in documents), np.int64, len(documents))
    offsets = np.zeros(len(documents) + 1, np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.fromiter((t for d in documents for t in d[0]), dtype, int(offsets[-1]))
    table = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
            "doc_id": pa.array([d[1] for d in documents], pa.string()),
            "n_bytes": pa.array([d[2] for d in documents], pa.int64()),
        }
    )
    with atomic_write(path) as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_batch(table)
    return {
        "file": path.name, "sha256": sha256_file(path), "source": source, "documents": len(documents), "tokens": int(offsets[-1]),
        "bytes": sum(d[2] for d in documents),
    }  # fmt: skip


class Shards:
    """The shards of one split, opened and verified.

    Args:
        folder: `data/shards`.
        split: `train`, `val` or `test`.

    Attributes:
        tokens: a flat read-only array of each shard's tokens, in the index's order (memory-mapped).
        infos: the index's entry of each shard.

    Raises:
        DataError: if the index or a shard is missing, of another format, or changed.
    """

    def __init__(self, folder: str | Path, split: str) -> None:
        folder = Path(folder)
        self.index = read_json(folder / "index.json", "the index of the token shards; run `dvc repro shard`", DataError)
        if self.index.get("format") != FORMAT:
            raise DataError(
                f"{folder / 'index.json'} has format {self.index.get('format')!r}; this version reads {FORMAT}: run `dvc repro shard`"
            )
        self.index_sha256 = sha256_json(self.index)
        self.split = split
        self.infos: list[dict[str, Any]] = self.index["splits"][split]["shards"]
        self._batches = [self._open(folder / split / info["file"], info) for info in self.infos]
        self.tokens: list[np.ndarray] = [b.column("tokens").values.to_numpy(zero_copy_only=True) for b in self._batches]

    def _open(self, path: Path, info: dict[str, Any]) -> pa.RecordBatch:
        if not path.is_file():
            raise DataError(f"{path} is missing: run `dvc checkout` or `dvc repro shard`")
        seen = sha256_file(path)
        if seen != info["sha256"]:
            raise DataError(
                f"{path} was changed after it was written (sha256 {seen[:12]}…, the index says {info['sha256'][:12]}…): "
                "restore it with `dvc checkout --force data/shards` or run `dvc repro -f shard`"
            )
        return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)

    def documents(self) -> Iterator[tuple[np.ndarray, int, str]]:
        """(tokens with begin and end symbol, bytes of the raw text, source) of each document, in order."""
        for batch, flat, info in zip(self._batches, self.tokens, self.infos, strict=True):
            offsets = batch.column("tokens").offsets.to_numpy()
            for i, n_bytes in enumerate(batch.column("n_bytes").to_pylist()):
                yield flat[offsets[i] : offsets[i + 1]], n_bytes, info["source"]
