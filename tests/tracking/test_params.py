"""Parameters reach MLflow under flat names, as text that YAML reads back with the type that it has in params.yaml."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tracking_servers import history, tracker

from foundry.config import Config, load_params
from foundry.config.load import read_yaml
from foundry.tracking.description import METRICS, run_description
from foundry.tracking.names import BASELINE, COMMAND, EXPERIMENT, NOTE
from foundry.tracking.params import as_text, flatten, used
from foundry.tracking.source import command_line

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
    values = load_params(ROOT / "params.yaml").model_dump(mode="json")
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


def test_the_description_of_a_run_says_what_was_trained_and_what_each_metric_means(root, uri):
    values = Config.model_validate(read_yaml(ROOT / "params.yaml")).model_dump(mode="json")
    with tracker(root / ".foundry/train/described", uri, "described", params=values) as t:
        t.log(1, {"loss": 1.0})
    run, _ = history(uri, "described")
    note = run.data.tags[NOTE]
    steps = f"{values['train']['steps']:,} steps of 2,048 tokens"
    assert "**MiniLLM, 3 layers of width 256**" in note and steps in note and "`described`" in note
    assert all(f"`{name}`" in note for name in METRICS)
    assert len(run.data.params) > 100 and run.data.params["train.lr"] == "0.005"
    assert "None" not in run_description("x", {})


def test_values_of_rule_sets_that_are_off_are_left_out_and_all_others_stay():
    values = load_params(ROOT / "params.yaml").model_dump(mode="json")
    values["clean"]["c4"]["enabled"] = True
    flat, every = flatten(used(values)), flatten(values)
    off = {k.rpartition(".")[0] for k, v in every.items() if k.endswith(".enabled") and v == "false"}
    assert len(off) >= 2 and "clean.c4.min_sentences" in flat
    left_out = set(every) - set(flat)
    assert left_out and all(any(k.startswith(f"{section}.") for section in off) for k in left_out)
    assert {f"{section}.enabled" for section in off} <= set(flat)


def test_a_run_records_who_started_it_from_which_program_by_which_command(root, uri, monkeypatch):
    monkeypatch.setattr("foundry.tracking.source.whoami", lambda: "Ada")
    monkeypatch.setattr(sys, "argv", [str(root / "stages/train.py")])
    with tracker(root / ".foundry/train/who", uri, "who") as t:
        t.log(1, {"loss": 1.0})
    tags = history(uri, "who")[0].data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("stages/train.py", "LOCAL")
    assert tags["mlflow.user"] == "Ada" and tags[COMMAND]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            [["/v/bin/python", "-m", "stages.train"], ["/v/bin/python3.11", "/v/bin/dvc", "repro", "a b"], ["bash"]],
            "dvc repro 'a b'",
        ),
        (
            [["python", "-m", "stages.train"], ["/v/bin/python", "-m", "dvc", "repro", "-s", "train"]],
            "dvc repro -s train",
        ),
        ([["/v/bin/python", "/v/bin/foundry", "register"], ["bash", "-c", "dvc repro"]], "foundry register"),
        ([["/v/bin/python", "train.py", "x"], ["make", "all"]], "python train.py x"),
        ([[], []], ""),
    ],
)
def test_the_command_is_the_one_that_was_typed(monkeypatch, lines, expected):
    parents = [SimpleNamespace(cmdline=lambda line=line: line) for line in lines]
    me = SimpleNamespace(cmdline=parents[0].cmdline, parents=lambda: parents[1:])
    monkeypatch.setattr("foundry.tracking.source.psutil.Process", lambda: me)
    assert command_line() == expected


def test_under_a_dvc_experiment_the_run_is_named_and_tagged_after_it(root, uri, monkeypatch):
    monkeypatch.setenv("DVC_EXP_NAME", "merry-otter")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "a" * 40)
    with tracker(root / ".foundry/train/exp", uri, "exp") as t:
        t.log(1, {"loss": 1.0})
    run, _ = history(uri, "exp")
    assert run.info.run_name == "r merry-otter"
    assert run.data.tags[EXPERIMENT] == "merry-otter" and run.data.tags[BASELINE] == "a" * 40
