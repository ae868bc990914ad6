"""A tiny model, random in every tensor: freshly made ones have zero outputs, which would hide half of all mistakes."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from example_records import example_cleaning, example_evaluation, example_source
from raw_files import raw_source, write_raw_manifest

from foundry.config import ModelConfig
from foundry.data.tokens.index import ShardIndex
from foundry.models import MiniLLM, TrainingFacts, save_model
from foundry.utils.files import read_json


def randomised(cfg: ModelConfig, seed: int = 0) -> MiniLLM:
    torch.manual_seed(seed)
    model = MiniLLM(cfg).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.3 + (p.ndim == 1))
    return model


@pytest.fixture(scope="session")
def make_model():
    return randomised


@pytest.fixture(scope="module")
def model():
    return randomised(
        ModelConfig(
            vocab_size=400,
            dim=64,
            n_layers=2,
            n_heads=4,
            n_kv_heads=2,
            ffn_dim=96,
            max_seq_len=64,
            rope_theta=5000.0,
            norm_eps=1e-3,
        )
    )


def project(root, model, tokenizer):
    """What the export stage reads, in `root`."""
    hashes = {"index_sha256": "1" * 64, "tokenizer_sha256": tokenizer.sha256}
    save_model(root / "artifacts/model", model, TrainingFacts(fingerprint="f" * 16, **hashes, steps=10, tokens=100))
    (root / "artifacts/tokenizer").mkdir()
    (root / "artifacts/tokenizer/tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    (root / "data/clean/test").mkdir(parents=True)
    texts = ["The salt water.\n\nAnd the city.", "Boil 3 onions.", "", "The history of the mountain. " * 40]
    table = pa.table({"text": texts, "n_bytes": [len(t.encode()) for t in texts]})
    pq.write_table(table, root / "data/clean/test/part-00000.parquet")
    weights = read_json(root / "artifacts/model/config.json", "facts")["weights_sha256"]
    example_evaluation(weights_sha256=weights).write(root / "reports/evaluate.json")
    cleaning = example_cleaning(example_source(license="MIT", attribution=""))
    cleaning.write(root / "reports/clean.json")
    described = cleaning.sources[0].model_dump(include={"name", "url", "license", "attribution", "lang"})
    write_raw_manifest(root / "data/raw", raw_source("one/x", **described))
    index = ShardIndex(dtype="uint16", vocab_size=400, tokenizer_sha256=tokenizer.sha256, splits={})
    (root / "data/shards").mkdir()
    index.write(root / "data/shards")
    (root / "artifacts/evaluation").mkdir()
    losses = {"doc_id": ["a"], "source": ["one"], "lang": ["en"], "n_bytes": [9], "tokens": [3], "nats": [5.0]}
    pq.write_table(pa.table(losses), root / "artifacts/evaluation/documents.parquet")


@pytest.fixture(scope="session")
def make_project():
    return project
