"""Token shards: Arrow IPC files that are memory-mapped without a copy, and the index that proves them.

A row is a document: `tokens` (begin symbol, text, end symbol; uint16, or uint32 when the vocabulary needs it), `doc_id`, and
`n_bytes`, the UTF-8 bytes of the raw text, so that bits per byte never count decoded pieces. A shard holds documents of one
source in their order, as one record batch, so that its tokens are one flat array; it is closed by the document that reaches
`shard.tokens_per_shard`. While one is written, memory holds its tokens twice and nothing of the rest.

`index.json` holds each shard's hash, source, counts and the source's weight in an epoch, the tokenizer's hash and the totals. Arrow
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
from foundry.data.tokenize import Block, TokenizerPool, part_files
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_dir, atomic_write, read_json, sha256_file, sha256_json, write_json

FORMAT = 2
SPLITS = ("train", "val", "test")


def read_clean(folder: str | Path, columns: list[str], rows: int = 512) -> Iterator[list[dict[str, Any]]]:
    """Groups of documents of one clean split, in the order of its files and rows.

    Raises:
        DataError: if there are no part files.
    """
    for part in part_files(folder):
        with pq.ParquetFile(part) as file:
            for batch in file.iter_batches(batch_size=rows, columns=columns):
                yield batch.to_pylist()


def write_shards(
    clean: str | Path,
    tokenizer: Tokenizer,
    params: Shard,
    out: str | Path,
    advance: Callable[[int], object] = lambda n: None,
    workers: int = 1,
) -> dict[str, Any]:
    """Tokenizes the clean splits into `out` and returns the index.

    Args:
        advance: called with the number of documents just encoded.
        workers: processes that encode (0: one for each core); the shards are the same for every number.

    Raises:
        DataError: if a split has no part files, or a part cannot be read.
    """
    dtype = "uint16" if tokenizer.vocab_size <= 2**16 else "uint32"
    index: dict[str, Any] = {
        "format": FORMAT, "dtype": dtype, "vocab_size": tokenizer.vocab_size, "tokenizer_sha256": tokenizer.sha256, "splits": {},
    }  # fmt: skip
    with atomic_dir(out) as tmp, TokenizerPool(tokenizer, workers) as pool:
        for split in SPLITS:
            folder = tmp / split
            folder.mkdir()
            groups = _groups(pool.blocks(Path(clean) / split), params.tokens_per_shard, advance)
            shards = [
                _write_shard(folder / f"shard-{i:05d}.arrow", source, blocks)
                for i, (source, blocks) in enumerate(groups)
            ]
            for s in shards:
                s["weight"] = params.weights.get(s["source"], 1.0) if split == "train" else 1.0
            totals = {key: sum(s[key] for s in shards) for key in ("documents", "tokens", "bytes")}
            totals["epoch_tokens"] = sum(round(t * w) for t, w in source_totals(shards).values())
            index["splits"][split] = {**totals, "shards": shards}
        write_json(tmp / "index.json", index)
    return index


def source_totals(infos: list[dict[str, Any]]) -> dict[str, tuple[int, float]]:
    """(tokens, weight) of each source, in the order of the shards."""
    totals: dict[str, tuple[int, float]] = {}
    for info in infos:
        tokens, _ = totals.get(info["source"], (0, 0.0))
        totals[info["source"]] = (tokens + info["tokens"], float(info["weight"]))
    return totals


def _groups(
    blocks: Iterator[Block], limit: int, advance: Callable[[int], object]
) -> Iterator[tuple[str, list[tuple[Block, int, int]]]]:
    """(source, runs of documents) of each shard: a new one when the source changes or `limit` tokens are reached."""
    current, runs, tokens = "", [], 0
    for block in blocks:
        first = 0
        while first < len(block):
            if runs and (block.source[first] != current or tokens >= limit):
                yield current, runs
                runs, tokens = [], 0
            current = block.source[first]
            # The documents up to the one that reaches the limit, of one source.
            last = int(np.searchsorted(block.ends, block.ends[first] + limit - tokens))
            last = min(last, len(block))
            last = next((i for i in range(first + 1, last) if block.source[i] != current), last)
            runs.append((block, first, last))
            tokens += int(block.ends[last] - block.ends[first])
            first = last
        advance(len(block))
    if runs:
        yield current, runs


def _write_shard(path: Path, source: str, runs: list[tuple[Block, int, int]]) -> dict[str, Any]:
    values = np.concatenate([b.tokens[b.ends[i] : b.ends[j]] for b, i, j in runs])
    if len(values) >= 2**31:
        raise DataError(f"a shard of {source} would hold {len(values):,} tokens, 2^31 or more: lower clean.max_chars")
    offsets = np.cumsum(np.concatenate([[0], *(np.diff(b.ends[i : j + 1]) for b, i, j in runs)])).astype(np.int32)
    n_bytes = np.concatenate([b.n_bytes[i:j] for b, i, j in runs])
    table = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
            "doc_id": pa.concat_arrays([b.doc_id[i:j] for b, i, j in runs]),
            "n_bytes": pa.array(n_bytes),
        }
    )
    with atomic_write(path) as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_batch(table)
    return {
        "file": path.name, "sha256": sha256_file(path), "source": source, "documents": len(n_bytes), "tokens": len(values),
        "bytes": int(n_bytes.sum()),
    }  # fmt: skip


class Shards:
    """The shards of one split, opened and verified.

    Args:
        folder: `data/shards`.
        split: `train`, `val` or `test`.
        tokenizer_sha256: hash of the tokenizer that will read the tokens; checked when it is given.

    Attributes:
        tokens: a flat read-only array of each shard's tokens, in the index's order (memory-mapped).
        offsets: where each document of each shard begins in `tokens`, and the end: int32 (documents + 1,).
        infos: the index's entry of each shard.

    Raises:
        DataError: if the index or a shard is missing, of another format, changed, or of another tokenizer.
    """

    def __init__(self, folder: str | Path, split: str, *, tokenizer_sha256: str | None = None) -> None:
        folder = Path(folder)
        self.index = read_json(folder / "index.json", "the index of the token shards; run `dvc repro shard`", DataError)
        if self.index.get("format") != FORMAT:
            raise DataError(
                f"{folder / 'index.json'} has format {self.index.get('format')!r}; this version reads {FORMAT}: run `dvc repro shard`"
            )
        made_with = self.index["tokenizer_sha256"]
        if tokenizer_sha256 not in (None, made_with):
            raise DataError(
                f"{folder} was made with the tokenizer {made_with[:12]}…, not with {tokenizer_sha256[:12]}…: run `dvc repro shard`"
            )
        self.index_sha256 = sha256_json(self.index)
        self.split = split
        self.infos: list[dict[str, Any]] = self.index["splits"][split]["shards"]
        self._batches = [self._open(folder / split / info["file"], info) for info in self.infos]
        columns = [b.column("tokens") for b in self._batches]
        self.tokens: list[np.ndarray] = [c.values.to_numpy(zero_copy_only=True) for c in columns]
        self.offsets: list[np.ndarray] = [c.offsets.to_numpy() for c in columns]

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
        for batch, flat, offsets, info in zip(self._batches, self.tokens, self.offsets, self.infos, strict=True):
            for i, n_bytes in enumerate(batch.column("n_bytes").to_pylist()):
                yield flat[offsets[i] : offsets[i + 1]], n_bytes, info["source"]
