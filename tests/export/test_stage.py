"""The stage: the same bytes on every run, no MLflow when tracking is off, no failure when MLflow is away."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from foundry.utils.files import read_json, sha256_tree, write_json, write_text

ROOT = Path(__file__).resolve().parents[2]


def run(root, code="import stages.export; stages.export.main()", **runtime):
    params = {
        "download": {"sources": [{"name": "one", "url": "file:corpus/x"}]},
        "export": {"model_name": "tiny"},
        "runtime": runtime,
    }
    write_text(root / "params.yaml", yaml.safe_dump(params))
    env = {k: v for k, v in os.environ.items() if k not in ("DVC_ROOT", "MLFLOW_TRACKING_URI")} | {
        "PYTHONPATH": str(ROOT)
    }
    return subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True)


@pytest.mark.slow  # two processes, each imports torch and transformers
def test_two_runs_give_the_same_bytes_with_and_without_a_reachable_mlflow(model, tokenizer, tmp_path, make_project):
    make_project(tmp_path, model, tokenizer)
    done = run(
        tmp_path, "import sys, stages.export; stages.export.main(); assert 'mlflow' not in sys.modules", tracking=False
    )
    assert done.returncode == 0, done.stderr
    assert "proved: 20 tensors bit for bit" in done.stdout
    there = importlib.util.find_spec("xllamacpp") is not None
    assert ("proved in llama.cpp: ids of" in done.stdout) == there
    assert ("llama.cpp: not proved here: xllamacpp is not installed" in done.stdout + done.stderr) != there
    record = read_json(tmp_path / "artifacts/export/proof.json", "proof")
    assert record["proof"]["llama_cpp"]["proved"] == there and record["proof"]["greedy"]["prompts"] == 8
    assert list(record["quantised"]["formats"]) == ["bf16", "q8_0", "q4_0"]
    assert record["quantised"]["documents"] == 3 and record["quantised"]["tokens"] > 100
    card = (tmp_path / "artifacts/export/hf/README.md").read_text(encoding="utf-8")
    assert "q4_0.gguf |" in card and "Prompt `In the beginning`" in card and "license: mit" in card
    first = sha256_tree(tmp_path / "artifacts/export")
    done = run(tmp_path, tracking=True, tracking_uri="http://127.0.0.1:9")
    assert done.returncode == 0 and "run `foundry register`" in done.stdout, done.stdout + done.stderr
    assert sha256_tree(tmp_path / "artifacts/export") == first


def test_a_stale_evaluation_is_reported_with_the_command_that_repeats_it(model, tokenizer, tmp_path, make_project):
    make_project(tmp_path, model, tokenizer)
    report = read_json(tmp_path / "reports/evaluate.json", "report")
    write_json(tmp_path / "reports/evaluate.json", {**report, "weights_sha256": "9" * 64})
    done = run(tmp_path, tracking=False)
    assert done.returncode == 1 and "run `dvc repro evaluate`" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "artifacts/export").exists()
