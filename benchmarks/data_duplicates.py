"""Near-duplicate removal: ours against datatrove's MinHash, two processes each, from jsonl files to the kept documents.

One near duplicate is planted per ten documents (one word in a hundred changed). Recall is the share of the planted
pairs of which one document is dropped; precision is the share of the dropped documents that belong to a planted pair.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import orjson

from benchmarks.corpus_for_data import clean_texts
from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.data.clean.dedup import BANDS, NEIGHBOURS, band_keys, comparable, drop_near, equal_pairs, jaccard, shingles
from foundry.data.text.grams import read_words

CHUNK = 256


def _read(path: Path) -> list[str]:
    return [orjson.loads(line)["text"] for line in path.read_bytes().split(b"\n") if line]


def _keys(path: Path) -> np.ndarray:
    texts = _read(path)
    chunks = (texts[i : i + CHUNK] for i in range(0, len(texts), CHUNK))
    return np.concatenate([band_keys(_numbers(chunk)) for chunk in chunks])


def _numbers(texts: list[str]) -> list[np.ndarray]:
    return [comparable(text, words) for text, words in zip(texts, read_words(texts), strict=True)]


def _compare(task: list[tuple[str, str]]) -> list[float]:
    sets = [shingles(numbers) for numbers in _numbers([text for pair in task for text in pair])]
    return [jaccard(a, b) for a, b in zip(sets[::2], sets[1::2], strict=True)]


class Removal(NamedTuple):
    """What one side did: seconds, and the ids of the documents that it kept."""

    seconds: float
    kept: list[str]


def ours(folder: Path, out: Path, pool: ProcessPoolExecutor) -> Removal:
    start = time.perf_counter()
    paths = sorted(folder.glob("*.jsonl"))
    keys = np.concatenate(list(pool.map(_keys, paths)))
    pairs = np.unique(
        np.concatenate(
            [equal_pairs(lambda b=b: iter([keys[:, b]]), len(keys), 512 << 20, NEIGHBOURS) for b in range(BANDS)]
        ),
        axis=0,
    )
    records = [orjson.loads(line) for p in paths for line in p.read_bytes().split(b"\n") if line]
    texts = [(records[a]["text"], records[b]["text"]) for a, b in pairs.tolist()]
    parts = pool.map(_compare, [texts[i : i + 128] for i in range(0, len(texts), 128)])
    similarity = np.array([s for part in parts for s in part])
    first = np.arange(len(records))
    drop_near(pairs, similarity, lambda a, b: _compare([(records[a]["text"], records[b]["text"])])[0], 0.7, first)
    kept = [r for i, r in enumerate(records) if first[i] == i]
    with open(out, "wb") as f:
        f.writelines(orjson.dumps(r) + b"\n" for r in kept)
    return Removal(time.perf_counter() - start, [r["id"] for r in kept])


def theirs(python: str, source: Path, work: Path) -> Removal:
    command = [python, str(Path(__file__).with_name("peer_duplicates.py")), str(source), str(work)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Removal(**json.loads(done.stdout.splitlines()[-1]))


def plant(folder: Path, project: Path, megabytes: float) -> tuple[float, list[str], dict[str, str]]:
    """Writes four jsonl files; returns their megabytes, all ids, and {planted: the document that it resembles}."""
    rng = random.Random(1)
    texts = clean_texts(project)
    documents, planted, size = [], {}, 0
    while size < megabytes * 1e6:
        text = "\n\n".join(rng.sample(texts, 6))[:4000]
        documents.append((f"d{len(documents)}", text))
        size += len(text.encode())
    for i, (origin, text) in enumerate(rng.sample(documents, len(documents) // 10)):
        words = text.split(" ")
        for k in rng.sample(range(len(words)), max(1, len(words) // 100)):
            words[k] = "changed"
        planted[f"p{i}"] = origin
        documents.append((f"p{i}", " ".join(words)))
        size += len(documents[-1][1].encode())
    for k in range(4):
        part = documents[k * len(documents) // 4 : (k + 1) * len(documents) // 4]
        (folder / f"{k}.jsonl").write_bytes(b"".join(orjson.dumps({"id": n, "text": t}) + b"\n" for n, t in part))
    return size / 1e6, [n for n, _ in documents], planted


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.data duplicates", description=__doc__)
    parser.add_argument("--peers", required=True, help="a Python with datatrove (see python -m benchmarks.data --help)")
    parser.add_argument("--project", type=Path, default=Path(), help="a project whose clean stage has run")
    parser.add_argument("--megabytes", type=float, default=10.0)
    add_rounds(parser, 3)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name, ProcessPoolExecutor(2) as pool:
        tmp = Path(name)
        source = tmp / "source"
        source.mkdir()
        size, ids, planted = plant(source, args.project, args.megabytes)
        list(pool.map(_keys, [source / "0.jsonl"] * 4))  # modules loaded
        sides = {
            "datatrove": lambda: theirs(args.peers, source, Path(tempfile.mkdtemp(dir=tmp))),
            "foundry": lambda: ours(source, tmp / "out.jsonl", pool),
        }
        done = take_turns(sides, args.rounds, Measure("MB/s", more_is_better=True), lambda r: size / r.seconds)
    notes = {}
    for side, runs in done.results.items():
        dropped = set(ids) - set(runs[0].kept)
        recall = statistics.mean(bool({a, b} & dropped) for a, b in planted.items())
        precision = len(dropped & (planted.keys() | set(planted.values()))) / max(1, len(dropped))
        notes[side] = f"{len(dropped)} dropped, recall {recall:.3f}, precision {precision:.3f}"
    title = f"{len(ids)} documents, {size:.1f} MB, {len(planted)} planted pairs, 2 processes"
    done.print(title, base="datatrove", notes=notes)
