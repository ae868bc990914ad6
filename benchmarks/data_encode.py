"""Encoding against SentencePiece's own batch encoding, the same ids, both sides in one run.

The baseline is `SentencePieceProcessor.encode(texts, num_threads=2)` on texts that are already in memory; the other
side is the shard stage's path from parquet files to arrays of tokens, reading included: in one process, as a small
corpus is encoded, and with two worker processes, with their start and without it. The text is a clean corpus repeated
with mutations (in every copy one word in ten is another word of the corpus, and one in a hundred is a word that occurs
nowhere else). The sides take turns; medians are printed with their spread, and the ids are compared.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentencepiece import SentencePieceProcessor

from foundry.data.schema import COLUMNS
from foundry.data.tokens import tokenize
from foundry.data.tokens.shards import read_clean
from foundry.tokenizers import Tokenizer

WORKERS = 2


def mutated(texts: list[str], megabytes: float, seed: int) -> Iterator[str]:
    """Yields documents until they have so many megabytes."""
    rng = random.Random(seed)
    words = [w for t in texts[:2000] for w in t.split(" ")]
    left = megabytes * 1e6
    while True:
        for text in texts:
            parts = text.split(" ")
            for i in range(len(parts)):
                chance = rng.random()
                if chance < 0.01:
                    parts[i] = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(4, 10)))
                elif chance < 0.1:
                    parts[i] = rng.choice(words)
            text = " ".join(parts)
            yield text
            left -= len(text.encode())
            if left <= 0:
                return


def write_parts(folder: Path, texts: list[str]) -> None:
    """Writes the texts as the clean stage does: in row groups of 4096 documents."""
    folder.mkdir()
    rows = [
        {"doc_id": f"{i:016x}", "text": t, "source": "mutated", "lang": "en", "n_bytes": len(t.encode())}
        for i, t in enumerate(texts)
    ]
    table = pa.Table.from_pylist(rows, COLUMNS)
    pq.write_table(table, folder / "part-00000.parquet", row_group_size=4096)


def compare(tokenizer: Tokenizer, texts: list[str], folder: Path, rounds: int) -> None:
    sp = SentencePieceProcessor(model_file=str(tokenizer.path))
    size = sum(len(t.encode()) for t in texts) / 1e6
    write_parts(folder, texts)
    names = (
        f"SentencePiece, {WORKERS} threads",
        "foundry, 1 process",
        f"foundry, {WORKERS} processes",
        "foundry, processes running",
    )
    seen: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        begin = time.perf_counter()
        expected = sp.encode(texts, num_threads=WORKERS)
        seen[names[0]].append(size / (time.perf_counter() - begin))
        tokenize.PARALLEL_FROM = 0  # the processes are started however small the text is
        begin = time.perf_counter()
        with tokenize.TokenizerPool(tokenizer, 1) as pool:
            for block in pool.blocks(folder):
                del block
        seen[names[1]].append(size / (time.perf_counter() - begin))
        begin = time.perf_counter()
        with tokenize.TokenizerPool(tokenizer, WORKERS) as pool:
            tokens = [block.tokens for block in pool.blocks(folder)]
            seen[names[2]].append(size / (time.perf_counter() - begin))
            begin = time.perf_counter()
            for block in pool.blocks(folder):
                del block
            seen[names[3]].append(size / (time.perf_counter() - begin))
        if turn == 0:
            flat = (i for ids in expected for i in (tokenizer.bos_id, *ids, tokenizer.eos_id))
            ours = np.concatenate(tokens)
            same = np.array_equal(np.fromiter(flat, ours.dtype, sum(map(len, expected)) + 2 * len(expected)), ours)
            if not same:
                raise SystemExit("the ids differ")
        del expected, tokens
    base = statistics.median(seen[names[0]])
    print(f"\n{f'{size:.0f} MB, {len(texts):,} documents, same ids':40}{'MB/s':>8}{'spread':>16}{'ratio':>8}")
    for name, values in seen.items():
        middle = statistics.median(values)
        print(f"{name:40}{middle:8.1f}{f'{min(values):.1f} - {max(values):.1f}':>16}{middle / base:8.2f}", flush=True)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="data_encode", description=__doc__.split("\n")[0])
    parser.add_argument("--clean", type=Path, default=Path("data/clean"))
    parser.add_argument("--tokenizer", type=Path, default=Path("artifacts/tokenizer"))
    parser.add_argument("--megabytes", type=float, nargs="+", default=[16, 48])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args(argv)
    tokenizer = Tokenizer(args.tokenizer)
    texts = [row["text"] for rows in read_clean(args.clean / "train", ["text"]) for row in rows]
    print(f"{tokenizer.kind}, {tokenizer.vocab_size} pieces; {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as tmp:
        for megabytes in args.megabytes:
            compare(tokenizer, list(mutated(texts, megabytes, 1)), Path(tmp) / f"{megabytes:g}", args.rounds)
