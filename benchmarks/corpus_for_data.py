"""Texts for the benchmarks of the data room: the default corpus's clean documents, mutated or spoilt in a fixed way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

JUNK = (
    lambda rng, t: "\n".join([t[:1500], *[f"Read more about {t[:20]}"] * rng.randint(5, 40)]),
    lambda rng, t: " ".join(rng.choice(("buy", "now", "cheap", "here")) for _ in range(rng.randint(200, 600))),
    lambda rng, t: "\n".join(f"- {w}" for w in t.split()[:300]),
    lambda rng, t: "\n".join(t[i : i + 25] for i in range(0, 3000, 25)),
    lambda rng, t: t[: rng.randint(20, 400)],
    lambda rng, t: t.replace(". ", " ").replace(".\n", "\n"),
    lambda rng, t: (
        t + "\nPlease enable JavaScript to view the comments.\nlorem ipsum dolor sit amet, and so on it goes."
    ),
    lambda rng, t: t + "\n" + "function() { return x; }. " * 20,
    lambda rng, t: " ".join(str(rng.randrange(10**6)) for _ in range(400)) + " " + t[:500],
    lambda rng, t: (t[:800] + "\n\n") * rng.randint(2, 5),
    lambda rng, t: "\n".join(x + "..." for x in t.split("\n")),
    lambda rng, t: " # ".join(t.split()),
)


def clean_texts(folder: Path) -> list[str]:
    """The training documents of a finished project.

    Raises:
        SystemExit: if the project has none.
    """
    parts = sorted((folder / "data/clean/train").glob("part-*.parquet"))
    if not parts:
        raise SystemExit(
            f"no clean documents under {folder}: run `dvc repro clean` there, or name a project with --project"
        )
    return [t for p in parts for t in pq.read_table(p, columns=["text"])["text"].to_pylist()]


def web_like(folder: Path, megabytes: float, seed: int = 1) -> list[str]:
    """Documents of about 4 kB, joined from clean ones; half are spoilt, so that every rule has something to drop."""
    rng = random.Random(seed)
    texts = clean_texts(folder)
    out, size = [], 0
    while size < megabytes * 1e6:
        joined = "\n\n".join(rng.sample(texts, 6))[: rng.randint(1500, 6000)]
        out.append(rng.choice(JUNK)(rng, joined) if rng.random() < 0.5 else joined)
        size += len(out[-1].encode())
    return out


def mutated(folder: Path, megabytes: float, seed: int = 1) -> Iterator[str]:
    """Yields the clean documents repeatedly until the size is reached.

    One word in seven is replaced by another one of the corpus, so that copies are not near duplicates.
    """
    rng = random.Random(seed)
    texts = clean_texts(folder)
    words = list({w for t in texts[:2000] for w in t.split(" ")})
    size = 0.0
    while size < megabytes * 1e6:
        for text in texts:
            some = text.split(" ")
            for i in rng.sample(range(len(some)), -(-len(some) // 7)):
                some[i] = rng.choice(words)
            new = " ".join(some)
            size += len(new.encode())
            yield new
            if size >= megabytes * 1e6:
                return
