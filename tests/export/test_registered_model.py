"""From a proved export to a registered model that runs where nothing of the project is."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from example_records import example_cleaning, example_evaluation, example_source
from raw_files import raw_source, write_raw_manifest

from foundry.cli import main
from foundry.config import DataError, Export, ExportError, TrackingError, parse_config
from foundry.config.prediction import PREDICTION
from foundry.export import export
from foundry.export.lineage import build_lineage
from foundry.export.manifest import hash_files, read_record, verify_export, write_record
from foundry.models import ModelFacts
from foundry.project.compare import in_folder
from foundry.project.compare import losses as score_text
from foundry.project.register import register_export
from foundry.project.trace import trace
from foundry.tracking import tracking_uri
from foundry.tracking.backup import BackedUp, backup
from foundry.tracking.registry import download
from foundry.tracking.settings import connect
from foundry.utils.bootstrap import Interval

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
out["fresh"] = [model.predict(["The"])[0] for _ in range(3)]
out["null"] = [model.predict(["The"], params={"seed": None})[0] for _ in range(3)]
out["zero"] = [model.predict(["The"], params={"seed": 0})[0] for _ in range(2)]
out["defaults"] = {p.name: p.default for p in model.metadata.signature.params.params}
chosen = mlflow.pyfunc.load_model("models:/tiny@champion", model_config={"device": "cpu"})
out["device"] = str(chosen.unwrap_python_model().generator.device)
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


def losses(folder, scale, seed=0, documents=60):
    """A table of losses by document: `scale` makes all of them larger."""
    rng = np.random.default_rng(0)
    size = rng.integers(300, 3000, documents)
    nats = (
        size * rng.normal(1.1, 0.2, documents) * scale * (1 + np.random.default_rng(seed).normal(0, 0.005, documents))
    )
    (folder / "artifacts/evaluation").mkdir(parents=True, exist_ok=True)
    ids = [f"{i:016x}" for i in range(documents)]
    table = {
        "doc_id": ids,
        "source": ["one"] * documents,
        "lang": ["en"] * documents,
        "n_bytes": size,
        "tokens": size // 3,
        "nats": nats,
    }
    pq.write_table(pa.table(table), folder / "artifacts/evaluation/documents.parquet")


def make(root, model, tokenizer, value=1.5, scale=1.0, seed=0, fingerprint="f" * 16):
    """A folder as the pipeline leaves it."""
    hashes = {"tokenizer_sha256": tokenizer.sha256, "index_sha256": "1" * 64, "weights_sha256": fingerprint * 4}
    facts = ModelFacts(fingerprint=fingerprint, **hashes, steps=10, tokens=100)
    bits_per_byte = Interval(value=value, low=value - 0.1, high=value + 0.1)
    report = example_evaluation(bits_per_byte, weights_sha256=fingerprint * 4)
    cleaning = example_cleaning(example_source(license="CC0-1.0", attribution=""))
    described = cleaning.sources[0].model_dump(include={"name", "url", "license", "attribution", "lang"})
    write_raw_manifest(root / "data/raw", raw_source("one/x", **described))
    report.write(root / "reports/evaluate.json")
    cleaning.write(root / "reports/clean.json")
    export(
        root / "artifacts/export",
        model,
        facts,
        tokenizer,
        report,
        cleaning,
        ["The salt."],
        ["The"],
        Export(model_name="tiny", gguf_types=["f32"]),
        lineage=build_lineage(root, facts, {"seed": 1}, {}),
    )
    losses(root, scale, seed)
    return root


@pytest.fixture(scope="module")
def project(model, tokenizer, tmp_path_factory):
    return make(tmp_path_factory.mktemp("project") / "Größe 模型", model, tokenizer)


@pytest.fixture
def cfg(project, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(project))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    data = {"download": {"sources": [{"name": "one", "url": "file:corpus/x"}]}, "export": {"model_name": "tiny"}}
    return parse_config(data)


@pytest.fixture
def registered(project, cfg):
    return register_export(cfg, project)


def test_files_that_were_replaced_in_the_store_are_noticed_by_the_registrys_tag(
    project, cfg, model, tokenizer, tmp_path, monkeypatch, capsys
):
    root = make(tmp_path / "own", model, tokenizer)
    monkeypatch.setenv("DVC_ROOT", str(root))
    register_export(cfg, root)
    monkeypatch.chdir(root)
    (root / "params.yaml").write_text(
        "download: {sources: [{name: one, url: 'file:corpus/x'}]}\nexport: {model_name: tiny}\n"
    )
    main(["verify", "models:/tiny/1"])
    assert "its files are those that were registered" in capsys.readouterr().out
    (stored,) = (p.parent for p in root.glob(".foundry/mlartifacts/**/artifacts/export/proof.json"))
    (stored / "hf/README.md").write_text("another card")
    with pytest.raises(ExportError, match=r"README\.md: changed"):
        trace("models:/tiny/1", cfg, root)
    write_record(stored, read_record(stored).model_copy(update={"files": hash_files(stored)}))  # signed again
    for command in ("verify", "trace", "reproduce"):
        with pytest.raises(SystemExit):
            main([command, "models:/tiny/1"])
        assert "somebody replaced them" in capsys.readouterr().err


def test_the_registered_model_runs_from_nothing_but_its_own_folder(project, registered, model, tokenizer, tmp_path):
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
    assert out["seeds"][0] == out["seeds"][1] != out["seeds"][2] and out["zero"][0] == out["zero"][1]
    # No seed is a fresh one, through MLflow's own enforcement of the signature, which fills in its defaults.
    assert len(set(out["fresh"])) > 1 and len(set(out["null"])) > 1
    assert out["defaults"] == {name: default for name, (_, default) in PREDICTION.items()} and out["device"] == "cpu"
    messages = {
        "number": "number 0 is int: 1",
        "none": "number 1 is NoneType",
        "top_p": "top_p must be",
        "typo": "unknown parameter 'max_token'",
        "long": "fit the context of 64",
        "columns": "one column of texts",
    }
    for name, message in messages.items():
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
    original = report.read_text()
    report.write_text(original.replace("f" * 64, "5" * 64))
    with pytest.raises(DataError, match="is of another model"):
        register_export(cfg, project)
    report.write_text(original)
    path = project / "artifacts/export/proof.json"
    original = path.read_text()
    path.write_text(original.replace('"different": 0', '"different": 1', 1))
    try:
        with pytest.raises(ExportError, match=r"proof\.json was changed"):
            register_export(cfg, project)
    finally:
        path.write_text(original)


def test_the_version_says_what_it_is_and_what_was_proved(project, registered):
    from foundry.tracking.settings import connect

    client = connect(f"sqlite:///{project}/.foundry/mlflow.db")
    version = client.get_model_version_by_alias("tiny", "champion")
    assert version.tags["foundry.proof"].startswith("transformers: logits, ids and greedy text equal; llama.cpp: ")
    assert (
        version.tags["foundry.bits_per_byte"] == "1.5"
        and version.tags["foundry.bits_per_byte_interval"] == "1.4 to 1.6"
    )
    shown = sorted(
        version.tags
    )  # as MLflow's page sorts them: the score first; the only hashes are those that are searched
    assert shown[:4] == [
        "foundry.bits_per_byte",
        "foundry.bits_per_byte_interval",
        "foundry.fingerprint",
        "foundry.promotion",
    ]
    assert [t for t in shown if len(version.tags[t]) == 64] == ["foundry.sha256", "foundry.test_sha256"]
    kept = client.download_artifacts(version.run_id, "lineage.json")  # all others
    with open(kept, encoding="utf-8") as f:
        assert f.read() == (project / "artifacts/export/lineage.json").read_text(encoding="utf-8")
    assert "1.5000 bits per byte" in version.description and client.get_registered_model("tiny").description
    inputs = {d.dataset.name: d.dataset.digest for d in client.get_run(version.run_id).inputs.dataset_inputs}
    assert inputs == {"data/shards": "1" * 36, "data/shards/test": "3" * 36, "one": "4" * 36}


@pytest.mark.slow
def test_the_gate_promotes_what_the_paired_comparison_calls_better_and_says_why_not_otherwise(
    model, tokenizer, make_model, cfg, tmp_path, monkeypatch, capsys
):
    """Three trainings of one project, through the commands that a person types."""
    root = tmp_path / "gate"
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    (root / "params.yaml").write_text(
        "download: {sources: [{name: one, url: 'file:corpus/x'}]}\nexport: {model_name: tiny}\n"
    )
    make(root, model, tokenizer)
    assert register_export(cfg, root).champion
    make(root, make_model(model.cfg, 1), tokenizer, scale=1.0, seed=1, fingerprint="a" * 16)  # another seed: noise
    same = register_export(cfg, root)
    assert (
        same.created
        and not same.champion
        and same.reason.startswith("not distinguishable: ")
        and "against version 1" in same.reason
    )
    make(root, make_model(model.cfg, 2), tokenizer, value=1.45, scale=0.98, fingerprint="b" * 16)
    better = register_export(cfg, root)
    assert better.champion and better.reason.startswith("better: ") and "p = " in better.reason
    main(["promote"])
    assert "challenger is champion: it is the champion" in capsys.readouterr().out
    main(["promote", "1"])
    assert "1 is not promoted: worse: " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["promote", "1", "--force"])
    assert "has a reason" in capsys.readouterr().err
    main(["promote", "2", "--force", "--why", "its samples read better"])
    assert "2 is champion: forced by " in capsys.readouterr().out
    main(["rollback", "--why", "they do not"])
    assert "champion is version 3 again (before: version 2)" in capsys.readouterr().out
    main(["compare", "models:/tiny/1", "models:/tiny@champion"])
    out = capsys.readouterr().out
    assert "models:/tiny@champion against models:/tiny/1" in out and "\nbetter: " in out and "one: " in out
    main(["trace", "models:/tiny@champion"])
    out = capsys.readouterr().out
    assert "tiny version 3" in out and "file:corpus/x (CC0-1.0)" in out and "4" * 64 in out
    with pytest.raises(SystemExit):
        main(["trace", "models:/tiny@nobody"])
    assert "nobody" in capsys.readouterr().err
    (root / "artifacts/evaluation/documents.parquet").unlink()
    with pytest.raises(DataError, match=r"documents\.parquet is missing"):
        register_export(cfg, root)
    losses(root, 0.5, documents=30)
    make(root, make_model(model.cfg, 3), tokenizer, fingerprint="c" * 16)
    losses(root, 0.5, documents=30)  # far better, on other text
    other = register_export(cfg, root)
    assert not other.champion and "was tested on other text" in other.reason
    (root / "data/clean/test").mkdir(parents=True)
    rows = [
        {"doc_id": f"{i:016x}", "text": f"The salt of day {i} is white. " * 9, "source": "one", "lang": "en"}
        for i in range(30)
    ]
    pq.write_table(pa.Table.from_pylist(rows), root / "data/clean/test/part-00000.parquet")
    make(root, make_model(model.cfg, 4), tokenizer, fingerprint="d" * 16)
    mine = score_text(in_folder(root / "artifacts/export", "mine"), cfg, root)
    nats = pa.array(np.asarray(mine["nats"]) * 0.5)  # as if it were far better
    pq.write_table(
        mine.set_column(mine.column_names.index("nats"), "nats", nats), root / "artifacts/evaluation/documents.parquet"
    )
    again = register_export(cfg, root)
    assert again.champion and again.reason.endswith("against version 3, which was scored again on this test text")


def test_a_backup_has_every_versions_files_tags_and_aliases(project, cfg, registered, tmp_path):
    uri = tracking_uri(cfg.runtime)
    client = connect(uri)
    every = client.search_model_versions("name='tiny'")
    assert backup(uri, tmp_path / "b") == BackedUp(models=1, versions=len(every), copied=len(every))
    assert backup(uri, tmp_path / "b").copied == 0
    kept = json.loads((tmp_path / "b/registry.json").read_text())["models"][0]
    assert kept["aliases"] == client.get_registered_model("tiny").aliases and kept["name"] == "tiny"
    for version, row in zip(
        sorted(every, key=lambda v: int(v.version)),
        sorted(kept["versions"], key=lambda r: int(r["version"])),
        strict=True,
    ):
        assert row["tags"] == version.tags and row["run"]["metrics"] == client.get_run(version.run_id).data.metrics
        verify_export(tmp_path / "b/tiny" / str(version.version) / "export")
    copy = connect(f"sqlite:///{tmp_path / 'b/mlflow.db'}")
    assert {v.version for v in copy.search_model_versions("name='tiny'")} == {v.version for v in every}
    assert not list((tmp_path / "b").rglob("*.tmp"))
    kept["versions"][0]["source"] = "of another registry"
    (tmp_path / "b/registry.json").write_text(json.dumps({"uri": "x", "models": [kept]}))
    assert backup(uri, tmp_path / "b").copied == 1
    with pytest.raises(TrackingError, match="could not back up the registry"):
        backup("http://127.0.0.1:9", tmp_path / "c")


def test_a_registration_that_could_not_be_made_waits_and_is_delivered(
    project, cfg, model, tokenizer, tmp_path, monkeypatch, capsys
):
    root = tmp_path / "late"
    root.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(root))
    monkeypatch.chdir(root)
    make(root, model, tokenizer)
    text = (
        "download: {{sources: [{{name: one, url: 'file:corpus/x'}}]}}\n"
        "export: {{model_name: tiny}}\nruntime: {{tracking_uri: '{0}'}}\n"
    )
    (root / "params.yaml").write_text(text.format("http://127.0.0.1:9"))
    away = cfg.model_copy(update={"runtime": cfg.runtime.model_copy(update={"tracking_uri": "http://127.0.0.1:9"})})
    with pytest.raises(TrackingError, match="run `foundry register` when MLflow is back"):
        register_export(away, root)
    (waiting,) = (root / ".foundry/register").glob("*/waiting.json")
    for folder in ("artifacts", "reports"):  # a worktree goes, a stage's outs are replaced
        shutil.rmtree(root / folder)
    with pytest.raises(SystemExit):
        main(["sync"])
    assert waiting.exists()
    (root / "params.yaml").write_text(text.format(f"sqlite:///{root}/.foundry/mlflow.db"))
    main(["sync"])
    assert "version 1 of tiny: there was no champion" in capsys.readouterr().out and not waiting.parent.exists()
    verify_export(
        download("models:/tiny@champion", f"sqlite:///{root}/.foundry/mlflow.db", tmp_path / "got") / "export"
    )


@pytest.mark.slow
def test_the_champion_is_served_over_http(project, registered, model, tokenizer, tmp_path):
    import socket
    import time
    import urllib.error
    import urllib.request

    from foundry.inference import Generator

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {
        **os.environ,
        "MLFLOW_TRACKING_URI": f"sqlite:///{project}/.foundry/mlflow.db",
        "PATH": f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}",
    }
    command = f"mlflow models serve -m models:/tiny@champion --env-manager local -h 127.0.0.1 -p {port} -w 1".split()
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", *command], cwd=tmp_path, env=env, stdout=log, stderr=log, start_new_session=True
        )

    def post(body):
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    try:
        end = time.monotonic() + 150
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5)
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()[-3000:]
                time.sleep(0.5)
        greedy = {"temperature": 0.0, "max_tokens": 8}
        expected = [
            Generator(model, tokenizer, "cpu").generate_text(p, max_new_tokens=8, temperature=0)
            for p in ("The salt", "Boil")
        ]
        frame = {"dataframe_split": {"columns": ["prompt"], "data": [["The salt"], ["Boil"]]}, "params": greedy}
        assert post(frame)["predictions"] == expected
        assert post({"inputs": ["The salt", "Boil"], "params": greedy})["predictions"] == expected
        with pytest.raises(urllib.error.HTTPError) as refused:
            post({"inputs": ["a"], "params": {"top_p": 1.5}})
        assert refused.value.code == 400 and b"top_p" in refused.value.read()
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)
