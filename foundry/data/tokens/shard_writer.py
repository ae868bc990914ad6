"""Writing of token shards (described in `foundry/data/tokens/shards.py`): the clean documents, tokenized, in their
order.

A shard ends with the document that reaches `shard.tokens_per_shard`, or with its source. While one is written, memory
contains its tokens twice and nothing of the rest. The bytes are the same for every number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from foundry.config import DataError, Shard
from foundry.data.splits import SPLITS
from foundry.data.tokens.index import ShardEntry, ShardIndex, SplitEntry, source_totals
from foundry.data.tokens.tokenize import EncodedGroup, TokenizerPool
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_dir, atomic_write, sha256_file


class DocumentSlice(NamedTuple):
    """The documents [first, last) of a group."""

    group: EncodedGroup
    first: int
    last: int


def write_shards(
    clean: str | Path,
    tokenizer: Tokenizer,
    params: Shard,
    out: str | Path,
    advance: Callable[[int], object] = lambda n: None,
    workers: int = 1,
) -> ShardIndex:
    """Tokenizes the clean splits into `out` and returns the index.

    Args:
        advance: called with the number of documents just encoded.
        workers: processes that encode (0: one for each core); the shards are the same for every number.

    Raises:
        DataError: if a split has no part files, or a part cannot be read.
    """
    splits = {}
    with atomic_dir(out) as tmp, TokenizerPool(tokenizer, workers) as pool:
        for split in SPLITS:
            folder = tmp / split
            folder.mkdir()
            weights = params.weights if split == "train" else {}
            shards = [
                _write_shard(folder / f"shard-{i:05d}.arrow", source, weights.get(source, 1.0), slices)
                for i, (source, slices) in enumerate(
                    _shards(pool.groups(Path(clean) / split), params.tokens_per_shard, advance)
                )
            ]
            splits[split] = SplitEntry(
                documents=sum(s.documents for s in shards),
                tokens=sum(s.tokens for s in shards),
                bytes=sum(s.bytes for s in shards),
                epoch_tokens=sum(total.epoch_tokens for total in source_totals(shards).values()),
                shards=shards,
            )
        index = ShardIndex(
            dtype="uint16" if tokenizer.vocab_size <= 2**16 else "uint32",
            vocab_size=tokenizer.vocab_size,
            tokenizer_sha256=tokenizer.sha256,
            splits=splits,
        )
        index.write(tmp)
    return index


def _shards(
    groups: Iterator[EncodedGroup], limit: int, advance: Callable[[int], object]
) -> Iterator[tuple[str, list[DocumentSlice]]]:
    """(source, documents) of each shard: a new one when the source changes or `limit` tokens are reached."""
    current, slices, tokens = "", [], 0
    for group in groups:
        first = 0
        while first < len(group):
            if slices and (group.source[first] != current or tokens >= limit):
                yield current, slices
                slices, tokens = [], 0
            current = group.source[first]
            # The documents up to the one that reaches the limit, of one source.
            last = int(np.searchsorted(group.offsets, group.offsets[first] + limit - tokens))
            last = min(last, len(group))
            last = next((i for i in range(first + 1, last) if group.source[i] != current), last)
            slices.append(DocumentSlice(group, first, last))
            tokens += int(group.offsets[last] - group.offsets[first])
            first = last
        advance(len(group))
    if slices:
        yield current, slices


def _write_shard(path: Path, source: str, weight: float, slices: list[DocumentSlice]) -> ShardEntry:
    values = np.concatenate([g.tokens[g.offsets[i] : g.offsets[j]] for g, i, j in slices])
    if len(values) >= 2**31:
        raise DataError(
            f"a shard of {source} would contain {len(values):,} tokens, 2^31 or more: lower clean.max_chars"
        )
    lengths = [np.diff(g.offsets[i : j + 1]) for g, i, j in slices]
    offsets = np.cumsum(np.concatenate([[0], *lengths])).astype(np.int32)
    n_bytes = np.concatenate([g.n_bytes[i:j] for g, i, j in slices])
    table = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
            "doc_id": pa.concat_arrays([g.doc_id[i:j] for g, i, j in slices]),
            "n_bytes": pa.array(n_bytes),
        }
    )
    with atomic_write(path) as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_batch(table)
    return ShardEntry(
        file=path.name,
        sha256=sha256_file(path),
        source=source,
        documents=len(n_bytes),
        tokens=len(values),
        bytes=int(n_bytes.sum()),
        weight=weight,
    )
