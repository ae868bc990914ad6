"""The stage: the same bytes on every run, no MLflow when tracking is off, no failure when MLflow is away."""

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from foundry.models import save_model
from foundry.utils.files import read_json, sha256_tree, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]


def make_project(root, model, tokenizer):
    hashes = {"index_sha256": "1" * 64, "tokenizer_sha256": tokenizer.sha256}
    save_model(root / "artifacts/model", model, {"fingerprint": "f" * 16, **hashes, "steps": 10, "tokens": 100})
    (root / "artifacts/tokenizer").mkdir()
    (root / "artifacts/tokenizer/tokenizer.model").write_bytes(tokenizer.path.read_bytes())
    (root / "data/clean/test").mkdir(parents=True)
    pq.write_table(
        pa.table({"text": ["The salt water.\n\nAnd the city.", "Boil 3 onions."]}),
        root / "data/clean/test/part-00000.parquet",
    )
    test = {"bits_per_byte": {"value": 1.5, "low": 1.4, "high": 1.6}, "documents": 2}
    weights = read_json(root / "artifacts/model/config.json", "facts")["weights_sha256"]
    write_json(
        root / "reports/evaluate.json",
        {"test": test, "by_source": {}, "weights_sha256": weights, "test_sha256": "3" * 64},
    )
    source = {"name": "one", "url": "file:x", "license": "MIT", "attribution": "", "lang": "en", "sha256": "4" * 64}
    write_json(root / "reports/clean.json", {"sources": [source]})


def run(root, code="import stages.export; stages.export.main()", **runtime):
    params = {
        "download": {"sources": [{"name": "one", "url": "file:x"}]},
        "export": {"model_name": "tiny"},
        "runtime": runtime,
    }
    write_text(root / "params.yaml", yaml.safe_dump(params))
    env = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")} | {
        "PYTHONPATH": str(ROOT)
    }
    return subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)


@pytest.mark.slow  # two processes, each imports torch and transformers
def test_two_runs_give_the_same_bytes_with_and_without_a_reachable_mlflow(model, tokenizer, tmp_path):
    make_project(tmp_path, model, tokenizer)
    done = run(
        tmp_path, "import sys, stages.export; stages.export.main(); assert 'mlflow' not in sys.modules", tracking=False
    )
    assert done.returncode == 0, done.stderr
    assert "proved: 20 tensors bit for bit" in done.stdout
    first = sha256_tree(tmp_path / "artifacts/export")
    done = run(tmp_path, tracking=True, tracking_uri="http://127.0.0.1:9")
    assert done.returncode == 0 and "run `foundry register`" in done.stdout, done.stdout + done.stderr
    assert sha256_tree(tmp_path / "artifacts/export") == first


def test_a_stale_evaluation_is_the_users_to_mend(model, tokenizer, tmp_path):
    make_project(tmp_path, model, tokenizer)
    report = read_json(tmp_path / "reports/evaluate.json", "report")
    write_json(tmp_path / "reports/evaluate.json", {**report, "weights_sha256": "9" * 64})
    done = run(tmp_path, tracking=False)
    assert done.returncode == 1 and "run `dvc repro evaluate`" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "artifacts/export").exists()
