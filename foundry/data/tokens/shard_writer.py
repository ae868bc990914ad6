"""Writing of token shards (`foundry/data/tokens/shards.py` says what they are): the clean documents, tokenized by every core, in their order.

A shard is closed by the document that reaches `shard.tokens_per_shard`, or by the end of its source. While one is written, memory
holds its tokens twice and nothing of the rest. The bytes are the same for every number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from foundry.config import DataError, Shard
from foundry.data.splits import SPLITS
from foundry.data.tokens.shards import FORMAT, source_totals
from foundry.data.tokens.tokenize import Block, TokenizerPool
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_dir, atomic_write, sha256_file, write_json


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
