"""`foundry generate` and the commands that load a model: options first, then text, on the device that was asked for."""

import io
import json
import shutil
import tempfile
from pathlib import Path

import pytest
import torch

from foundry import cli
from foundry.config import ModelConfig
from foundry.config.sampling import PARAMETERS
from foundry.models import MiniLLM, save_model

PARAMS = "download: {sources: [{name: one, url: 'file:corpus/x'}]}\nruntime: {tracking: false, device: DEVICE}\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory, tokenizer, clean):
    """A project with a trained model, its tokenizer, an export's folder and clean text."""
    from foundry.export.huggingface import export_huggingface

    root = tmp_path_factory.mktemp("project")
    torch.manual_seed(0)
    model = MiniLLM(
        ModelConfig(
            vocab_size=tokenizer.vocab_size, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, max_seq_len=32
        )
    )
    save_model(root / "artifacts/model", model)
    (root / "artifacts/tokenizer").mkdir()
    shutil.copy(tokenizer.path, root / "artifacts/tokenizer/tokenizer.model")
    export_huggingface(model, tokenizer, root / "artifacts/export/hf")
    shutil.copytree(clean, root / "data/clean")
    return root


@pytest.fixture
def project(built, monkeypatch):
    monkeypatch.chdir(built)
    monkeypatch.setenv("DVC_ROOT", str(built))
    (built / "params.yaml").write_text(PARAMS.replace("DEVICE", "cpu"))
    return built


def run(*args: str) -> int:
    try:
        cli.main(list(args))
    except SystemExit as e:
        return int(e.code or 0)
    return 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature", "1e300"], "temperature must be a number in [0, 1000]"),
        (["--temperature", "nan"], "temperature must be"),
        (["--temperature", "-1"], "temperature must be"),
        (["--top-p", "0"], "top_p must be"),
        (["--top-k", "-1"], "top_k must be"),
        (["--max-new-tokens", "0"], "max_new_tokens must be"),
        (["--seed", "-1"], "seed must be"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--device", "cpu:1"], "unknown device 'cpu:1'"),
        (["--model", "nowhere"], "does not exist"),
        (["--tokenizer", "nowhere"], "does not exist"),
    ],
)
def test_an_option_that_cannot_be_is_reported_before_any_text(project, capsys, options, expected):
    assert run("generate", "Once upon", *options) == 1
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.startswith("error: ") and expected in seen.err


@pytest.mark.parametrize("prompt", ["salt " * 100, "\udcff"])
def test_a_prompt_that_cannot_be_continued_is_reported_without_printing_it(project, capsys, prompt):
    assert run("generate", prompt) == 1
    seen = capsys.readouterr()
    assert seen.out == "" and seen.err.startswith("error: ")


@pytest.mark.parametrize("model", ["artifacts/model", "artifacts/export", "artifacts/export/hf"])
def test_a_trained_model_and_its_export_continue_alike(project, capsys, model):
    assert run("generate", "The salt", "--model", model, "--temperature", "0", "--max-new-tokens", "8") == 0
    text = capsys.readouterr().out
    assert run("generate", "The salt", "--temperature", "0", "--max-new-tokens", "8") == 0
    assert capsys.readouterr().out == text and text.startswith("The salt") and len(text) > 10


def test_every_sampling_parameter_is_an_option(project, capsys):
    values = {"ids": "5,7", "words": "salt,water", "bias": "5=-2,7=1.5", "integer": "3", "number": "0.9"}
    options = [f"--{p.name.replace('_', '-')}={values[p.kind]}" for p in PARAMETERS]
    assert run("generate", "The", *options, "--max-new-tokens", "4", "--seed", "1") == 0
    assert capsys.readouterr().out.startswith("The")
    for p in PARAMETERS:
        if p.kind != "words":
            assert run("generate", "The", f"--{p.name.replace('_', '-')}=x") == 1
            assert capsys.readouterr().err.startswith(f"error: {p.name} must be ")


def test_a_stop_text_ends_the_continuation(project, capsys):
    options = ["--temperature", "0", "--max-new-tokens", "12"]
    assert run("generate", "The salt", *options) == 0
    text = capsys.readouterr().out.removesuffix("\n").removeprefix("The salt")
    stop = text[len(text) // 2 :][:2]
    assert run("generate", "The salt", *options, "--stop", "never", "--stop", stop) == 0
    assert capsys.readouterr().out == f"The salt{text[: text.index(stop)]}\n"


def test_json_is_valid_under_the_schema_of_a_file(project, capsys):
    (project / "schema.json").write_text(
        '{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}'
    )
    assert run("generate", "", "--json-schema", "schema.json", "--max-new-tokens", "200", "--seed", "3") == 0
    values = json.loads(capsys.readouterr().out)
    assert 2 <= len(values) <= 3 and all(value in (True, False) for value in values)
    (project / "schema.json").write_text('{"not": {}}')
    assert run("generate", "", "--json-schema", "schema.json") == 1
    assert capsys.readouterr().err.startswith('error: the JSON schema cannot be enforced: Unimplemented keys: ["not"]')


def test_a_conversation_begins_with_the_options(project, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("/show\n"))
    assert run("generate", "--top-k", "7", "--bad-words", "salt", "--seed", "5") == 0
    assert "top_k = 7, top_p = 0.95, bad_words = ((" in capsys.readouterr().out
    assert run("generate", "--stop", "x") == 1
    assert "need a prompt" in capsys.readouterr().err


def test_outside_of_a_project_only_the_model_matters(project, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT")
    assert run("generate", "The", "--model", str(project / "artifacts/export"), "--max-new-tokens", "2") == 0
    assert capsys.readouterr().out.startswith("The")


# Every command that computes with a model, and the stages' own function for it.
LOADING = {
    "generate": ["generate", "The", "--max-new-tokens", "2", "--temperature", "0"],
    "compare": ["compare", "artifacts/model", "artifacts/export"],
}


@pytest.mark.parametrize("name", LOADING)
def test_a_command_uses_the_device_of_the_parameters(project, capsys, monkeypatch, name):
    asked = []
    from foundry.utils import device

    real = device.get_device
    monkeypatch.setattr(device, "get_device", lambda wish="auto": (asked.append(wish), real("cpu"))[1])
    (project / "params.yaml").write_text(PARAMS.replace("DEVICE", "mps"))
    assert run(*LOADING[name]) == 0
    assert set(asked) == {"mps"}
    monkeypatch.undo()


@pytest.mark.parametrize("name", LOADING)
def test_a_device_that_is_not_there_is_refused(project, capsys, name):
    if torch.backends.mps.is_available():
        pytest.skip("this machine has the device that the others lack")
    (project / "params.yaml").write_text(PARAMS.replace("DEVICE", "mps"))
    assert run(*LOADING[name]) == 1
    assert "device 'mps' is not available on this machine" in capsys.readouterr().err


def test_a_comparison_leaves_no_temporary_folder(project, monkeypatch, tmp_path, capsys):
    """What is downloaded from MLflow is a complete model."""
    from foundry.tracking import registry

    def download(address: str, uri: str, into: Path) -> Path:
        shutil.copytree(project / "artifacts/export", into / "export")
        return into

    monkeypatch.setattr(registry, "download", download)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert run("compare", "models:/a@champion", "models:/a/1") == 0
    assert "not distinguishable" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_long_prompt_of_the_samples_is_cut_with_a_notice(project, tokenizer, caplog):
    from foundry.config import Evaluate
    from foundry.evaluation.continuations import continue_prompts, samples_markdown
    from foundry.inference import Generator
    from foundry.models import load_model

    generator = Generator(load_model("artifacts/model"), tokenizer, "cpu")
    how = Evaluate(prompts=["The ", "salt " * 200, "salt " * 300 + "\U0001f600"], max_new_tokens=4)
    rows = continue_prompts(generator, how, 1)
    assert [row.note is not None for row in rows] == [False, True, True]
    assert rows[1].note.startswith("the prompt has ") and "the last 16 of them" in rows[1].note
    assert "evaluate.prompts[1]" in caplog.text and rows[1].note in samples_markdown(rows, how)
    with pytest.raises(ValueError, match="fit the context of 32"):
        generator.stream("salt " * 200)
