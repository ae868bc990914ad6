"""Shared fixtures: a tiny corpus made in code, its tokenizer, its shards. CPU, float32."""

import logging
import os
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foundry.data.splits import SPLITS

os.environ.setdefault("FOUNDRY_PROGRESS", "0")
os.environ["HF_HUB_OFFLINE"] = "1"
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core: two threads in each would wait for each other
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

WORDS = [
    "the",
    "a",
    "of",
    "salt",
    "water",
    "oven",
    "river",
    "king",
    "city",
    "music",
    "theory",
    "cell",
    "star",
    "stir",
    "boil",
    "add",
    "cut",
    "is",
    "was",
    "in",
    "and",
    "to",
    "with",
    "ancient",
    "small",
    "great",
    "first",
    "cup",
    "onion",
    "pepper",
    "bread",
    "history",
    "war",
    "science",
    "language",
    "mountain",
    "island",
    "planet",
    "number",
]


def make_text(rng: random.Random, sentences: int = 6) -> str:
    return " ".join(" ".join(rng.choices(WORDS, k=rng.randint(4, 12))).capitalize() + "." for _ in range(sentences))


def write_clean(folder, documents):
    """{split: [(text, source)]} as the clean stage writes them."""
    for split, rows in documents.items():
        (folder / split).mkdir(parents=True)
        table = pa.Table.from_pylist(
            [
                {
                    "doc_id": f"{SPLITS.index(split)}{i:015x}",
                    "text": t,
                    "source": s,
                    "lang": "en",
                    "n_bytes": len(t.encode()),
                }
                for i, (t, s) in enumerate(rows)
            ]
        )
        pq.write_table(table, folder / split / "part-00000.parquet")


def pytest_collection_modifyitems(items):
    """Files with long tests come first, so that the processes end at about the same time (`--no-loadscope-reorder`).

    The first of all builds the finished project; the others that need it come when it is built, or would wait for it.
    """
    long = {i.path for i in items if i.get_closest_marker("slow") or i.get_closest_marker("distributed")}
    need = list(dict.fromkeys(i.path for i in items if "finished" in i.fixturenames))
    items.sort(key=lambda i: (i.path not in need[:1], i.path not in long, i.path in need))


@pytest.fixture(autouse=True)
def logger_as_it_was():
    """No test leaves the project's logger in another state to the next one."""
    log = logging.getLogger("foundry")
    before = log.propagate, log.level
    yield
    log.propagate, log.level = before


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """A clean corpus of two sources, 'one' and 'two'."""
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("clean")
    sizes = {"train": 120, "val": 12, "test": 16}
    write_clean(
        folder, {s: [(make_text(rng), "one" if i < n // 2 else "two") for i in range(n)] for s, n in sizes.items()}
    )
    return folder


@pytest.fixture(scope="session")
def tokenizer(clean, tmp_path_factory):
    from foundry.config import TokenizerParams
    from foundry.data.tokens.shards import read_clean
    from foundry.tokenizers import Tokenizer
    from foundry.tokenizers.train import train_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    texts = [r["text"] for rows in read_clean(clean / "train", ["text"]) for r in rows]
    train_tokenizer(texts, TokenizerParams(vocab_size=400), folder / "tokenizer.model")
    return Tokenizer(folder)


@pytest.fixture(scope="session")
def shards(clean, tokenizer, tmp_path_factory):
    from foundry.config import Shard
    from foundry.data.tokens.shard_writer import write_shards

    out = tmp_path_factory.mktemp("shards") / "shards"
    write_shards(clean, tokenizer, Shard(tokens_per_shard=2048, weights={"two": 2}), out)
    return out


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """(folder, what `dvc repro` printed) of one finished smoke project, for all test processes; damage only copies."""
    from pipeline import built

    base = tmp_path_factory.getbasetemp()
    return built(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)
