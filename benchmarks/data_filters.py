"""Quality and repetition filters (Gopher, C4, FineWeb): ours against datatrove's, two processes each, same texts."""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from benchmarks.corpus_for_data import web_like
from benchmarks.peer_filters import SETS, TASK
from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.config.corpus import Clean
from foundry.data.clean.rules import Rules

_texts: list[str] = []
_rules: dict[tuple[str, ...], Rules] = {}


def _load(path: str) -> None:
    _texts[:] = json.loads(Path(path).read_text(encoding="utf-8"))


def _judge(task: tuple[int, int, tuple[str, ...]]) -> list[bool]:
    start, stop, names = task
    if names not in _rules:
        off = {
            "min_chars": 1,
            "max_chars": 10**9,
            "max_symbol_ratio": 1.0,
            "max_dup_line_ratio": 1.0,
            "max_top_ngram_ratio": 1.0,
        }
        _rules[names] = Rules(Clean(**off, **{n: {"enabled": True} for n in names}), Path())
    return [judgement.verdict is None for judgement in _rules[names].apply_all([(t, "en") for t in _texts[start:stop]])]


class Filtering(NamedTuple):
    """What one side did: seconds for all sets of rules together, and {sets: whether each document was kept}."""

    seconds: float
    decisions: dict[str, list[bool]]


def ours(path: Path, n: int) -> Filtering:
    cuts = [*range(0, n, TASK), n]
    with ProcessPoolExecutor(2, initializer=_load, initargs=(str(path),)) as pool:
        list(pool.map(_judge, [(0, 5, SETS)] * 4))
        decisions = {}
        for names in [*((s,) for s in SETS), SETS]:
            start = time.perf_counter()
            tasks = [(a, b, names) for a, b in pairwise(cuts)]
            decisions["+".join(names)] = [d for part in pool.map(_judge, tasks) for d in part]
            seconds = time.perf_counter() - start
    return Filtering(seconds, decisions)


def theirs(python: str, path: Path) -> Filtering:
    command = [python, str(Path(__file__).with_name("peer_filters.py")), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return Filtering(**json.loads(done.stdout.splitlines()[-1]))


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.data filters", description=__doc__)
    parser.add_argument("--peers", required=True, help="a Python with datatrove (see python -m benchmarks.data --help)")
    parser.add_argument("--project", type=Path, default=Path(), help="a project whose clean stage has run")
    parser.add_argument("--megabytes", type=float, default=4.0)
    add_rounds(parser, 3)
    args = parser.parse_args(argv)
    texts = web_like(args.project, args.megabytes)
    size = sum(len(t.encode()) for t in texts) / 1e6
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp, "texts.json")
        path.write_text(json.dumps(texts), encoding="utf-8")
        sides = {"datatrove": lambda: theirs(args.peers, path), "foundry": lambda: ours(path, len(texts))}
        done = take_turns(sides, args.rounds, Measure("MB/s", more_is_better=True), lambda r: size / r.seconds)
    done.print(f"{len(texts)} documents, {size:.1f} MB, 2 processes, all four sets", base="datatrove")
    mine, other = (done.results[side][0].decisions for side in ("foundry", "datatrove"))
    for names in mine:
        equal = statistics.mean(a == b for a, b in zip(mine[names], other[names], strict=True))
        kept = statistics.mean(other[names])
        print(f"  equal decisions {equal:.2%}, datatrove keeps {kept:.1%}: {names}")
