"""Parameters: all mistakes are reported together, by name, before any work."""

from pathlib import Path

import pytest
import yaml

from foundry.config import (
    Config,
    ConfigError,
    ModelConfig,
    load_config,
    load_pair,
    load_params,
    parse_config,
    read_yaml,
)
from foundry.config import profiles as table

ROOT = Path(__file__).resolve().parents[2]
PARAMS = ROOT / "params.yaml"


@pytest.fixture
def params():
    return read_yaml(PARAMS)


def test_the_shipped_parameters_are_valid_and_are_the_laptop_profile():
    load_params(PARAMS)
    assert table.changes(PARAMS, "laptop") == []


def test_every_key_of_the_schema_is_in_params_yaml(params):
    from foundry.config import describe

    keys = [p.key for p in describe() if not p.key.startswith("download.") and p.key != "model.vocab_size"]

    def present(key):
        value = params
        for part in key.split("."):
            if part not in value:
                return False
            value = value[part]
        return True

    assert [k for k in keys if not present(k)] == [] and len(keys) > 60


@pytest.mark.parametrize("name", table.profile_names())
def test_each_profile_is_valid(name):
    assert table.profile_config(name, PARAMS).model.head_dim in (64, 128)


def test_all_problems_are_reported_together_with_the_nearest_names(params):
    params["train"]["stesp"] = 5
    params["model"]["n_head"] = 4
    params["clean"]["min_chars"] = "many"
    params["runtime"]["device"] = "gpu"
    with pytest.raises(ConfigError) as e:
        parse_config(params)
    text = str(e.value)
    assert "4 problems" in text
    assert "train.stesp: unknown key; did you mean 'steps'?" in text
    assert "model.n_head: unknown key; did you mean 'n_heads'?" in text
    assert "clean.min_chars" in text and "'many'" in text
    assert "runtime.device" in text and "'cuda'" in text


@pytest.mark.parametrize(
    ("section", "key", "value", "reported"),
    [
        ("model", "n_heads", 3, "dim must be divisible by n_heads"),
        ("model", "n_kv_heads", 3, "n_heads must be divisible by n_kv_heads"),
        ("model", "vocab_size", 5000, "must equal tokenizer.vocab_size"),
        ("train", "tokens_per_step", 1000, "must be a multiple of model.max_seq_len"),
        ("train", "warmup_steps", 10**6, "must be smaller than steps"),
        ("train", "lr", True, "train.lr"),
        ("clean", "min_chars", 10**9, "must not exceed max_chars"),
        ("shard", "weights", {"recipse-en": 2.0}, "names no source: recipse-en"),
        ("runtime", "micro_batch_tokens", 300, "multiple of model.max_seq_len"),
        ("runtime", "nproc", 3, r"runtime.nproc \(3\) must divide the 8 sequences of a step"),
        ("clean", "max_unpack_ratio", 0.5, "max_unpack_ratio must be more than 1, or 0 for no limit"),
        ("clean", "gopher_quality", {"min_words": 10, "max_words": 9}, r"min_words \(10\) must not exceed max_words"),
        ("download", "sources", [], "download.sources"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_rule(params, section, key, value, reported):
    params[section][key] = value
    with pytest.raises(ConfigError, match=reported):
        parse_config(params)


def test_a_source_needs_what_proves_its_bytes(params):
    source = params["download"]["sources"][0]
    del source["sha256"]
    with pytest.raises(ConfigError, match="sha256"):
        parse_config(params)


def test_numbers_in_scientific_notation_are_numbers(tmp_path, params):
    text = PARAMS.read_text().replace("eps: 1.0e-8", "eps: 1e-8")
    assert "eps: 1e-8" in text
    (tmp_path / "p.yaml").write_text(text)
    assert load_params(tmp_path / "p.yaml").train.eps == 1e-8


@pytest.mark.parametrize(
    ("text", "reported"),
    [
        ("seed: 1\nseed: 2\n", "line 2.*'seed' is given twice"),
        ("seed: [1\n", "line 2.*not valid YAML"),
        ("- 1\n", "expected are sections.*not one list"),
        ("hello\n", "expected are sections.*not one value .*hello"),
        ("", "is empty; expected are the sections seed, download, .*runtime"),
        ("# only words\n", "is empty; expected"),
    ],
)
def test_a_file_that_is_no_parameter_file_is_refused(tmp_path, text, reported):
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reported):
        load_params(tmp_path / "p.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        load_params(tmp_path / "missing.yaml")


def test_switching_a_profile_keeps_comments_and_other_keys_and_names_what_reruns(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_text(PARAMS.read_text().replace("max_chars: 200000", "max_chars: 12345  # mine"))
    path.write_text(table.switch(path, "smoke"))
    text = path.read_text()
    assert "max_chars: 12345  # mine" in text and "# Every knob" in text
    assert load_params(path).tokenizer.vocab_size == 1024
    assert table.stages_to_rerun(["train.steps"], ROOT)[:3] == ["train", "evaluate", "export"]
    assert table.stages_to_rerun(["clean.max_documents"], ROOT)[0] == "clean"
    path.write_text(table.switch(path, "laptop"))
    assert yaml.safe_load(path.read_text()) == yaml.safe_load(PARAMS.read_text()) | {
        "clean": {**yaml.safe_load(PARAMS.read_text())["clean"], "max_chars": 12345}
    }


def test_every_key_has_a_description():
    from foundry.config import describe

    assert [p.key for p in describe() if not p.description] == [] and len(describe()) > 100


def test_each_reader_of_a_file_has_its_own_kind_and_load_config_takes_both(tmp_path):
    pair = tmp_path / "pair.yaml"
    pair.write_text("model: {dim: 64, n_heads: 2, n_kv_heads: 2}\ntraining: {max_iters: 50}\n")
    assert load_pair(pair) == load_config(pair) and load_pair(pair)[1].steps == 50
    assert load_params(PARAMS) == load_config(PARAMS) and isinstance(load_params(PARAMS), Config)
    with pytest.raises(ConfigError, match="training: unknown key"):
        load_params(pair)
    with pytest.raises(ConfigError, match="download: unknown section"):
        load_pair(PARAMS)
    pair.write_text("- 1\n")
    with pytest.raises(ConfigError, match="expected are the sections model and training"):
        load_pair(pair)


def test_an_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match="smoke, laptop, gpu-124m"):
        table.profile_config("tiny", PARAMS)


def test_wrong_shapes_raise_value_error_with_the_rule():
    with pytest.raises(ValueError, match="dim must be divisible by n_heads"):
        ModelConfig(dim=10, n_heads=3)
    with pytest.raises(ValueError, match="must be even"):
        ModelConfig(dim=12, n_heads=4, n_kv_heads=4)
