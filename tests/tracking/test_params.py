"""Parameters reach MLflow under flat names, as text that is read back with the type that it has in params.yaml."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracking_servers import history, tracker

from foundry.config import Config, load_config
from foundry.config.load import read_yaml
from foundry.tracking.description import METRICS, NOTE, run_description
from foundry.tracking.params import as_text, flatten

ROOT = Path(__file__).resolve().parents[2]


def read_back(text, path):
    path.write_text(f"value: {text}\n", encoding="utf-8")
    return read_yaml(path)["value"]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("yaml") / "p.yaml"


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(10**12), 10**12),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=40),
    st.sampled_from(
        ["true", "null", "1", "1e5", "1.0e-3", "0x1f", "2024-01-01", "- a", "a: b", "#", "", " a", "模型", "a\nb"]
    ),
)


@given(st.one_of(scalars, st.lists(scalars, max_size=4)))
def test_a_value_is_read_back_as_it_was(file, value):
    back = read_back(as_text(value), file)
    assert back == value and type(back) is type(value)


def test_every_parameter_of_the_project_is_read_back_with_its_type(file):
    values = load_config(ROOT / "params.yaml").model_dump(mode="json")
    flat = flatten(values)
    assert {"train.lr", "model.dim", "seed", "download.sources.0.name", "clean.gopher_quality.enabled"} <= set(flat)
    for section in ("train", "model", "tokenizer"):
        for key, value in values[section].items():
            back = read_back(flat[f"{section}.{key}"], file)
            assert back == value and type(back) is type(value), key


def test_names_are_those_that_mlflow_takes_and_long_values_are_cut_with_their_hash():
    flat = flatten({"shard": {"weights": {"a+b/模型": 2.0}}, "long": "x" * 10_000, "empty": {}})
    assert flat["shard.weights.a_b/模型"] == "2.0" and flat["empty"] == "{}"
    assert len(flat["long"]) <= 6000 and "sha256:" in flat["long"]


def test_a_run_says_what_was_trained_and_what_each_metric_means(root, uri):
    values = Config.model_validate(read_yaml(ROOT / "params.yaml")).model_dump(mode="json")
    with tracker(root / ".foundry/train/told", uri, "told", params=values) as t:
        t.log(1, {"loss": 1.0})
    run, _ = history(uri, "told")
    note = run.data.tags[NOTE]
    assert "**MiniLLM, 3 layers of width 256**" in note and "2,000 steps of 2,048 tokens" in note and "`told`" in note
    assert all(f"`{name}`" in note for name in METRICS)
    assert len(run.data.params) > 100 and run.data.params["train.lr"] == "0.005"
    assert "None" not in run_description("x", {})


def test_under_a_dvc_experiment_the_run_is_named_and_tagged_after_it(root, uri, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "merry-otter")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a" * 40)
    with tracker(root / ".foundry/train/exp", uri, "exp") as t:
        t.log(1, {"loss": 1.0})
    run, _ = history(uri, "exp")
    assert run.info.run_name == "r merry-otter"
    assert run.data.tags["dvc.exp_name"] == "merry-otter" and run.data.tags["dvc.exp_baseline_rev"] == "a" * 40
