"""Each bad input of the stage is an error that a person can act on, and no folder gets the final name."""

import json
import logging
import math
import shutil

import pytest
import torch

import stages.export
from foundry.config import ConfigError, DataError, ExportError, FoundryError, ModelConfig, parse_config
from foundry.export import export_gguf, export_huggingface
from foundry.export.gguf_file import check_vocabulary
from foundry.models import load_trained_model, save_model


@pytest.fixture(scope="module")
def complete(model, tokenizer, tmp_path_factory, make_project):
    folder = tmp_path_factory.mktemp("complete")
    make_project(folder, model, tokenizer)
    return folder


@pytest.fixture
def project(complete, tmp_path, monkeypatch):
    shutil.copytree(complete, tmp_path / "p")
    monkeypatch.chdir(tmp_path / "p")
    return tmp_path / "p"


def run(**export):
    data = {"download": {"sources": [{"name": "one", "url": "file:corpus/x"}]}, "runtime": {"tracking": False}}
    cfg = parse_config({**data, "export": {"model_name": "tiny", **export}})
    stages.export.work(cfg, logging.getLogger("test"))


def refused(project, message, error=FoundryError, **export):
    with pytest.raises(error, match=message):
        run(**export)
    assert not (project / "artifacts/export").exists()
    assert sorted(p.name for p in (project / "artifacts").iterdir()) == ["evaluation", "model", "tokenizer"]


def test_a_model_folder_without_config(project):
    (project / "artifacts/model/config.json").unlink()
    refused(project, r"artifacts/model/config\.json does not exist.*run the train stage", DataError)


def test_cut_weights(project):
    path = project / "artifacts/model/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    refused(
        project, r"model\.safetensors was changed after training .* `foundry verify --repair` restores it", DataError
    )


def test_missing_weights(project):
    (project / "artifacts/model/model.safetensors").unlink()
    refused(project, r"model\.safetensors is missing: run the train stage", DataError)


@pytest.mark.parametrize("name", ["evaluate", "clean"])
def test_a_missing_and_a_broken_report(project, name):
    path = project / f"reports/{name}.json"
    path.write_text('{"test": ')
    refused(project, rf"reports/{name}\.json is not readable JSON .*run `dvc repro {name}`")
    path.unlink()
    refused(project, rf"reports/{name}\.json does not exist: .*run `dvc repro {name}`")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(project, make_model, model, value):
    broken = make_model(model.cfg)
    with torch.no_grad():
        broken.layers[1].ffn.w_up.weight[3, 5] = value
    save_model(project / "artifacts/model", broken, load_trained_model(project / "artifacts/model")[1])
    report = json.loads((project / "reports/evaluate.json").read_text())
    report["weights_sha256"] = json.loads((project / "artifacts/model/config.json").read_text())["weights_sha256"]
    (project / "reports/evaluate.json").write_text(json.dumps(report))
    refused(project, r"1 of the 6144 numbers of layers\.1\.ffn\.w_up\.weight are NaN or infinite", ExportError)
    with pytest.raises(ExportError, match="NaN or infinite"):
        export_huggingface(broken, stages.export.Tokenizer("artifacts/tokenizer"), project / "hf")
    assert not (project / "hf").exists()


def test_a_tokenizer_of_another_vocabulary(project, make_model, tokenizer):
    path = project / "artifacts/model/config.json"
    facts = json.loads(path.read_text())
    path.write_text(json.dumps({**facts, "tokenizer_sha256": "0" * 64}))
    refused(project, "not the one that the model was trained with", ExportError)
    other = make_model(ModelConfig(vocab_size=399, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32))
    with pytest.raises(ExportError, match="the model has 399 tokens, the tokenizer 400"):
        export_huggingface(other, tokenizer, project / "hf")


def test_two_tokens_of_one_text(model, tokenizer, tmp_path, monkeypatch):
    check_vocabulary(tokenizer)
    piece = type(tokenizer).piece
    monkeypatch.setattr(type(tokenizer), "piece", lambda self, i: piece(self, 390 if i == 395 else i))
    with pytest.raises(ExportError, match=r"tokens 390 and 395 have the same text"):
        export_gguf(model, tokenizer, tmp_path / "m.gguf", "f32", "m")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("kinds", "message"),
    [([], "at least 1 item"), (["q8_0", "q8_0"], "each format once"), (["q5_k"], "gguf_types"), ("f16", "gguf_types")],
)
def test_unknown_formats_are_reported_before_any_stage(kinds, message):
    with pytest.raises(ConfigError, match=message):
        run(gguf_types=kinds)
