"""Encoding against SentencePiece's own batch encoding, the same ids, both sides in one run.

The baseline is `SentencePieceProcessor.encode(texts, num_threads=2)` on texts that are already in memory; the other
side is the shard stage's path from parquet files to arrays of tokens, reading included: with one thread and with two,
as a small corpus is encoded, and with two worker processes, as a large one is, with their start and without it. But for
the last, every turn is cold: no word has been encoded before. The text is a clean corpus repeated with mutations (in
every copy one word in ten is another word of the corpus, and one in a hundred is a word that occurs nowhere else). The
ids are compared first.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from sentencepiece import SentencePieceProcessor

from benchmarks.rounds import Measure, add_rounds, take_turns
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
    check_ids(tokenizer, sp.encode(texts, num_threads=WORKERS), folder)

    def theirs() -> float:
        begin = time.perf_counter()
        sp.encode(texts, num_threads=WORKERS)
        return size / (time.perf_counter() - begin)

    def encode(pool: tokenize.TokenizerPool) -> float:
        begin = time.perf_counter()
        for group in pool.groups(folder):
            del group
        return size / (time.perf_counter() - begin)

    def cold(workers: int, processes: bool = False) -> float:
        tokenize.PROCESSES_FROM = 0 if processes else 1 << 62
        begin = time.perf_counter()
        with tokenize.TokenizerPool(tokenizer, workers) as pool:
            encode(pool)
            return size / (time.perf_counter() - begin)

    tokenize.PROCESSES_FROM = 0
    with tokenize.TokenizerPool(tokenizer, WORKERS) as running:
        encode(running)
        base = f"SentencePiece, {WORKERS} threads"
        sides = {
            base: theirs,
            "foundry, 1 thread": lambda: cold(1),
            f"foundry, {WORKERS} threads": lambda: cold(WORKERS),
            f"foundry, {WORKERS} processes": lambda: cold(WORKERS, processes=True),
            f"foundry, {WORKERS} processes running": lambda: encode(running),
        }
        done = take_turns(sides, rounds, Measure("MB/s", more_is_better=True))
    done.print(f"{size:.0f} MB, {len(texts):,} documents, same ids", base)


def check_ids(tokenizer: Tokenizer, expected: list[list[int]], folder: Path) -> None:
    with tokenize.TokenizerPool(tokenizer, WORKERS) as pool:
        ours = np.concatenate([group.tokens for group in pool.groups(folder)])
    flat = (i for ids in expected for i in (tokenizer.bos_id, *ids, tokenizer.eos_id))
    if not np.array_equal(np.fromiter(flat, ours.dtype, sum(map(len, expected)) + 2 * len(expected)), ours):
        raise SystemExit("the ids differ")


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.data encode", description=__doc__.split("\n")[0])
    parser.add_argument("--clean", type=Path, default=Path("data/clean"))
    parser.add_argument("--tokenizer", type=Path, default=Path("artifacts/tokenizer"))
    parser.add_argument("--megabytes", type=float, nargs="+", default=[16, 48])
    add_rounds(parser, 5)
    args = parser.parse_args(argv)
    tokenizer = Tokenizer(args.tokenizer)
    texts = [row["text"] for rows in read_clean(args.clean / "train", ["text"]) for row in rows]
    print(f"{tokenizer.kind}, {tokenizer.vocab_size} pieces")
    with tempfile.TemporaryDirectory() as tmp:
        for megabytes in args.megabytes:
            compare(tokenizer, list(mutated(texts, megabytes, 1)), Path(tmp) / f"{megabytes:g}", args.rounds)
