"""Batches per second against nanoGPT's `get_batch`, both sides in one run.

The baseline is nanoGPT's algorithm, written here from its description: for every batch the token file is memory-mapped
again, a random place is drawn for each row, and two rows are cast to int64 and stacked. The other side is
`foundry.DataLoader` on shards with the same tokens, in each way of packing. Batches of 16 x 256, x and y int64, 64 M
random uint16 tokens, files in the page cache. The loader's first batch (opening, hashing, planning) is not in the
measured time; its time is printed.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.data.tokens.index import ShardEntry, ShardIndex, SplitEntry
from foundry.data.tokens.loader import DataLoader
from foundry.utils.files import sha256_file

BATCH, SEQ_LEN = 16, 256


def make_tokens(folder: Path, tokens: int, seed: int) -> Path:
    """Random documents as one shard and, the same tokens, as one flat file; returns the flat file."""
    rng = np.random.default_rng(seed)
    values = rng.integers(3, 50_257, tokens, dtype=np.uint16)
    lengths = np.minimum(rng.lognormal(5.5, 1.0, tokens // 200).astype(np.int64) + 2, 4096)
    ends = np.cumsum(lengths)
    ends = np.append(ends[ends < tokens - 2], tokens)
    offsets = np.concatenate([[0], ends]).astype(np.int32)
    values[offsets[:-1]], values[offsets[1:] - 1] = 1, 2
    (folder / "train").mkdir(parents=True)
    table = pa.record_batch(
        {
            "tokens": pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)),
            "doc_id": pa.array([str(i) for i in range(len(offsets) - 1)]),
            "n_bytes": pa.array(np.diff(offsets).astype(np.int64)),
        }
    )
    path = folder / "train" / "shard-00000.arrow"
    with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, table.schema) as writer:
        writer.write_batch(table)
    size = {"documents": len(table), "tokens": tokens, "bytes": tokens}
    entry = ShardEntry(file=path.name, sha256=sha256_file(path), source="random", weight=1.0, **size)
    splits = {"train": SplitEntry(**size, epoch_tokens=tokens, shards=[entry])}
    ShardIndex(dtype="uint16", vocab_size=50_257, tokenizer_sha256="0" * 64, splits=splits).write(folder)
    values.tofile(folder / "train.bin")
    return folder / "train.bin"


def nanogpt_get_batch(path: Path) -> Callable[[int], tuple[torch.Tensor, torch.Tensor]]:
    def get_batch(_: int) -> tuple[torch.Tensor, torch.Tensor]:
        data = np.memmap(path, dtype=np.uint16, mode="r")
        ix = torch.randint(len(data) - SEQ_LEN, (BATCH,))
        x = torch.stack([torch.from_numpy(data[i : i + SEQ_LEN].astype(np.int64)) for i in ix])
        y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + SEQ_LEN].astype(np.int64)) for i in ix])
        return x, y

    return get_batch


def rate(batch: Callable[[int], tuple[torch.Tensor, torch.Tensor]], steps: Iterator[int], seconds: float) -> float:
    """Millions of tokens per second, from where the turn before ended."""
    n, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < seconds:
        for _ in range(50):
            batch(next(steps))
        n += 50
    return n * BATCH * SEQ_LEN / (time.perf_counter() - begin) / 1e6


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.data loader", description=__doc__.split("\n")[0])
    add_rounds(parser, 7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each side in each round")
    parser.add_argument("--tokens", type=int, default=64_000_000)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as tmp:
        flat = make_tokens(Path(tmp) / "shards", args.tokens, seed=1)
        batches = {"nanoGPT get_batch": nanogpt_get_batch(flat)}
        for packing in ("cut", "best_fit", "document"):
            begin = time.perf_counter()
            loader = DataLoader(Path(tmp) / "shards", BATCH, SEQ_LEN, packing=packing)
            loader.batch(0)
            spent = time.perf_counter() - begin
            print(f"foundry {packing}: first batch after {spent:.2f} s, padding {loader.padding:.2%}")
            batches[f"foundry {packing}"] = loader.batch
        sides = {name: partial(rate, batch, count(), args.seconds) for name, batch in batches.items()}
        done = take_turns(sides, args.rounds, Measure("M tokens/s", more_is_better=True))
    done.print("batches of 16 x 256", base="nanoGPT get_batch")
