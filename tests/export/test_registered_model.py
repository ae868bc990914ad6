"""From a proved export to a registered model that runs where nothing of the project is."""

import json
import os
import subprocess
import sys

import pytest

from foundry.config import DataError, Export, ExportError, parse_config
from foundry.export import export
from foundry.registering import register_export
from foundry.utils.files import write_json

SCRIPT = """
import json, sys
import mlflow
from mlflow.exceptions import MlflowException

mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model("models:/tiny@champion")
import foundry
greedy = {"temperature": 0.0, "max_tokens": 8}
out = {"package": foundry.__file__, "texts": model.predict(["The salt", "Boil"], params=greedy)}
out["one"] = model.predict(["Boil"], params=greedy)
out["seeds"] = [model.predict(["The"], params={"seed": s})[0] for s in (1, 1, 2)]
plain = model.unwrap_python_model()
errors = {
    "number": lambda: plain.predict(None, [1]),
    "none": lambda: plain.predict(None, ["a", None]),
    "top_p": lambda: plain.predict(None, ["a"], {"top_p": 1.5}),
    "typo": lambda: plain.predict(None, ["a"], {"max_token": 5}),
    "long": lambda: plain.predict(None, ["salt " * 200]),
    "columns": lambda: plain.predict(None, __import__("pandas").DataFrame({"a": ["x"], "b": ["y"]})),
}
for name, call in errors.items():
    try:
        out[name] = call()
    except MlflowException as e:
        out[name] = [e.error_code, e.message]
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def project(model, tokenizer, tmp_path_factory):
    """A folder as the pipeline leaves it."""
    root = tmp_path_factory.mktemp("project") / "Größe 模型"
    hashes = {"tokenizer_sha256": tokenizer.sha256, "index_sha256": "1" * 64, "weights_sha256": "2" * 64}
    facts = {"fingerprint": "f" * 16, **hashes, "steps": 10, "tokens": 100}
    test = {"bits_per_byte": {"value": 1.5, "low": 1.4, "high": 1.6}, "documents": 3}
    report = {"test": test, "by_source": {}, "weights_sha256": "2" * 64, "test_sha256": "3" * 64}
    sources = [
        {"name": "one", "url": "file:x", "license": "CC0-1.0", "attribution": "", "lang": "en", "sha256": "4" * 64}
    ]
    export(
        root / "artifacts/export",
        model,
        facts,
        tokenizer,
        report,
        sources,
        ["The salt."],
        ["The"],
        Export(model_name="tiny"),
    )
    write_json(root / "reports/evaluate.json", report)
    return root


@pytest.fixture
def cfg(project, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = {"download": {"sources": [{"name": "one", "url": "file:x"}]}, "export": {"model_name": "tiny"}}
    return parse_config(data)


@pytest.fixture
def registered(project, cfg):
    return register_export(cfg, project)


def test_the_registered_model_runs_from_its_own_folder_alone(project, registered, model, tokenizer, tmp_path):
    from foundry.inference import Generator

    uri = f"sqlite:///{project}/.foundry/mlflow.db"
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run([sys.executable, "-c", SCRIPT, uri], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out = json.loads(done.stdout.splitlines()[-1])
    assert not out["package"].startswith(os.getcwd()) and "/code/foundry/" in out["package"]
    generator = Generator(model, tokenizer, "cpu")
    expected = [generator.generate_text(p, max_new_tokens=8, temperature=0) for p in ("The salt", "Boil")]
    assert out["texts"] == expected and out["one"] == expected[1:]
    assert out["seeds"][0] == out["seeds"][1] != out["seeds"][2]
    told = {
        "number": "number 0 is int: 1",
        "none": "number 1 is NoneType",
        "top_p": "top_p must lie",
        "typo": "unknown parameter 'max_token'",
        "long": "fit the context of 64",
        "columns": "one column of texts",
    }
    for name, message in told.items():
        code, text = out[name]
        assert code == "INVALID_PARAMETER_VALUE" and message in text, (name, text)


def test_the_same_content_is_registered_once(project, cfg, registered):
    again = register_export(cfg, project)
    assert not again.created and again.champion and str(again.version) == str(registered.version) == "1"


def test_nothing_that_is_registered_is_a_pickle(project, registered):
    stored = [p for p in (project / ".foundry").rglob("*") if p.is_file() and p.suffix != ".db"]
    assert any(p.name == "model.safetensors" for p in stored)
    assert not [p for p in stored if p.suffix in (".pkl", ".pickle", ".bin", ".pt", ".pth")]


def test_a_changed_export_or_a_foreign_evaluation_is_not_registered(project, cfg):
    report = project / "reports/evaluate.json"
    whole = report.read_text()
    report.write_text(whole.replace("2" * 64, "5" * 64))
    with pytest.raises(DataError, match="is of another model"):
        register_export(cfg, project)
    report.write_text(whole)
    path = project / "artifacts/export/proof.json"
    whole = path.read_text()
    path.write_text(whole.replace('"different": 0', '"different": 1', 1))
    try:
        with pytest.raises(ExportError, match=r"proof\.json was changed"):
            register_export(cfg, project)
    finally:
        path.write_text(whole)
