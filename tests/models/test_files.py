"""The folder of a model: the verified bytes are the loaded ones, and a folder of another kind is refused."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from foundry.config import DataError, ModelConfig
from foundry.models import MiniLLM, TrainingFacts, load_model, load_trained_model, save_model
from foundry.models.facts import SkipDecision
from foundry.models.files import weights_sha256

MODEL = ModelConfig(vocab_size=64, dim=16, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=16, max_seq_len=16)


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(1)
    facts = TrainingFacts(fingerprint="f", tokenizer_sha256="t", index_sha256="i", steps=3, tokens=4)
    save_model(tmp_path / "model", MiniLLM(MODEL), facts)
    return tmp_path / "model"


def test_the_file_is_what_safetensors_itself_writes(folder):
    torch.manual_seed(1)
    assert (folder / "model.safetensors").read_bytes() == save(MiniLLM(MODEL).state_dict(), {"format": "pt"})


def test_the_hash_of_weights_is_over_names_shapes_and_values():
    torch.manual_seed(1)
    model = MiniLLM(MODEL)
    digest = hashlib.sha256()
    for name in sorted(model.state_dict()):
        value = model.state_dict()[name].numpy()
        digest.update(f"{name} {value.shape}\n".encode() + value.astype("<f4").tobytes())
    assert weights_sha256(model) == digest.hexdigest()
    with torch.no_grad():
        model.tok_embeddings.weight[3, 5] += 1e-3
    assert weights_sha256(model) != digest.hexdigest()


def test_the_architecture_and_the_hash_are_all_that_a_model_needs(folder):
    facts = json.loads((folder / "config.json").read_text())
    least = {k: facts[k] for k in ("model", "weights_sha256")}
    (folder / "config.json").write_text(json.dumps(least))
    torch.manual_seed(1)
    first = weights_sha256(MiniLLM(MODEL))
    assert weights_sha256(load_model(folder)) == first and load_model(folder).cfg == MODEL
    save_model(folder, load_model(folder))  # without facts exactly these two are written
    assert json.loads((folder / "config.json").read_text()) == least


def test_the_facts_of_the_training_are_written_beside_the_architecture_and_come_back(folder):
    config = json.loads((folder / "config.json").read_text())
    known = ["fingerprint", "tokenizer_sha256", "index_sha256", "steps", "tokens"]
    assert list(config) == ["model", *known, "weights_sha256"]
    facts = load_trained_model(folder)[1]
    assert facts.to_json() == {k: config[k] for k in (*known, "weights_sha256")}
    decisions = [SkipDecision(step=5, reason="the loss is nan", batches=[5, 6])]
    save_model(folder, load_model(folder), facts.model_copy(update={"skipped_batches": decisions}))
    skipped = json.loads((folder / "config.json").read_text())["skipped_batches"]
    assert skipped == [{"step": 5, "reason": "the loss is nan", "batches": [5, 6]}]
    assert load_trained_model(folder)[1].skipped_batches == decisions


@pytest.mark.parametrize("name", ["fingerprint", "steps"])
def test_a_model_without_a_fact_of_its_training_is_an_error_that_names_it(folder, name):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != name}))
    with pytest.raises(
        DataError, match=rf"config.json does not contain the facts .*invalid: {name}\).*dvc repro train"
    ):
        load_trained_model(folder)


def test_a_file_that_changes_after_it_was_verified_is_not_what_is_loaded(folder, monkeypatch):
    """The hash is that of the bytes in memory: the file is read once."""
    read = Path.read_bytes

    def swapped(path):
        data = read(path)
        if path.name == "model.safetensors":
            path.write_bytes(bytes(len(data)))
        return data

    monkeypatch.setattr(Path, "read_bytes", swapped)
    torch.manual_seed(1)
    expected = MiniLLM(MODEL).state_dict()
    loaded = load_model(folder).state_dict()
    assert all(torch.equal(expected[k], loaded[k]) for k in expected)
    with pytest.raises(DataError, match="was changed after training"):
        load_model(folder)


@pytest.mark.parametrize(
    "text", ['{"architectures": ["LlamaForCausalLM"]}', '{"model": {}}', '{"weights_sha256": ""}', "[]", "3"]
)
def test_a_folder_of_another_kind_is_an_error_that_says_what_to_give(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(DataError, match=r"is not a model as the train stage writes it.*Give artifacts/model"):
        load_model(folder)


def test_an_invalid_architecture_is_an_error(folder):
    facts = json.loads((folder / "config.json").read_text())
    for broken in ({}, {**facts["model"], "dim": "wide"}, []):
        (folder / "config.json").write_text(json.dumps({**facts, "model": broken}))
        with pytest.raises(DataError, match=r"config.json .*architecture"):
            load_model(folder)
