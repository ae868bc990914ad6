"""The chain from a model to the raw bytes: written, printed without a server, broken by a flipped byte anywhere.

Where it is broken, the link is named.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from example_records import example_cleaning, example_evaluation, example_source
from flow_notes import build_note
from raw_files import raw_source, write_raw_manifest
from scoring import tiny

from foundry.cli import main
from foundry.config import ConfigError, Export, ExportError, FoundryError, load_params, parse_config, read_yaml
from foundry.config.schema import EXECUTION
from foundry.data.tokens.index import read_index
from foundry.export import export
from foundry.export.lineage import REPORTS, build_lineage, read_lineage
from foundry.export.manifest import hash_files, read_record, verify_export, write_record
from foundry.models import TrainingFacts, load_trained_model, save_model
from foundry.project import reproduce, trace
from foundry.project.verify import verify
from foundry.utils.dvc_record import md5_file, md5_folder, read_lock
from foundry.utils.files import sha256_file, sha256_json, write_json
from foundry.utils.flow_runs import write_note
from foundry.utils.raw_manifest import RawFile

ROOT = Path(__file__).resolve().parents[2]
SOURCE = {"name": "one", "url": "file:corpus/a.txt", "license": "CC0-1.0", "attribution": "us", "lang": "en"}
CFG = parse_config({"download": {"sources": [{"name": "one", "url": "file:corpus/a.txt"}]}})


@pytest.fixture(scope="module")
def finished_project(tmp_path_factory, clean, shards, tokenizer):
    """A project as the pipeline leaves it, in git, with the hash of its export in a committed dvc.lock."""
    root = tmp_path_factory.mktemp("custody") / "Größe 模型"
    (root / "data/raw/one").mkdir(parents=True)
    (root / "data/raw/one/a.txt").write_text("raw text")
    raw = RawFile(path="one/a.txt", sha256=sha256_file(root / "data/raw/one/a.txt"), bytes=8)
    write_raw_manifest(root / "data/raw", raw_source(raw, **SOURCE))
    shutil.copytree(clean, root / "data/clean")
    shutil.copytree(shards, root / "data/shards")
    (root / "artifacts/tokenizer").mkdir(parents=True)
    shutil.copy(tokenizer.path, root / "artifacts/tokenizer/tokenizer.model")
    hashes = {"index_sha256": read_index(shards).sha256, "tokenizer_sha256": tokenizer.sha256}
    trained = TrainingFacts(fingerprint="f" * 16, **hashes, steps=10, tokens=640)
    save_model(root / "artifacts/model", tiny(max_seq_len=64), trained)
    model, facts = load_trained_model(root / "artifacts/model")
    write_json(root / "artifacts/tokenizer/facts.json", {"sha256": tokenizer.sha256})
    write_json(root / "artifacts/evaluation/tasks/cloze.jsonl", {"question": 1})
    for name in REPORTS:
        write_json(root / "reports" / name, {"of": name})
    parameters = CFG.identity()
    chain = build_lineage(root, facts, parameters, read_index(shards).file_hashes())
    report = example_evaluation(weights_sha256=facts.weights_sha256)
    cleaning = example_cleaning(example_source(**SOURCE, sha256=raw.sha256))
    params = Export(model_name="tiny", gguf_types=["f32"])
    export(
        root / "artifacts/export",
        model,
        facts,
        tokenizer,
        report,
        cleaning,
        ["The salt."],
        ["The"],
        params,
        lineage=chain,
    )
    (root / "reports/page.html").write_text("<p>1.5 bits per byte</p>")
    outs = [{"path": "artifacts/export", "md5": md5_folder(root / "artifacts/export")}]
    outs += [{"path": "reports/page.html", "md5": md5_file(root / "reports/page.html")}]
    (root / "dvc.lock").write_text(yaml.safe_dump({"schema": "2.0", "stages": {"export": {"cmd": "-", "outs": outs}}}))
    (root / "params.yaml").write_text("download: {sources: [{name: one, url: 'file:corpus/a.txt'}]}\n")
    (root / ".gitignore").write_text("/data\n/artifacts\n")
    for command in (
        ["init", "-q"],
        ["add", "."],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "made"],
    ):
        subprocess.run(["git", *command], cwd=root, check=True)
    return root


@pytest.fixture
def project(finished_project, tmp_path, monkeypatch):
    root = shutil.copytree(finished_project, tmp_path / "project")
    monkeypatch.chdir(root)
    monkeypatch.setenv("DVC_ROOT", str(root))
    return root


def head(root):
    return subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True
    ).stdout.strip()


def test_the_chain_is_printed_from_the_folder_alone_down_to_the_raw_bytes_and_the_commit(project, capsys):
    main(["trace", "artifacts/export"])
    out = capsys.readouterr().out
    _, facts = load_trained_model("artifacts/model")
    raw = sha256_file(project / "data/raw/one/a.txt")
    at = [
        out.index(x)
        for x in (
            facts.weights_sha256,
            "f" * 16,
            facts.index_sha256,
            facts.tokenizer_sha256,
            "file:corpus/a.txt",
            raw,
            head(project),
        )
    ]
    assert at == sorted(at)
    for name in ("data", "artifacts/model", "artifacts/tokenizer", "dvc.lock", ".git"):
        shutil.rmtree(project / name, ignore_errors=True)
    main(["trace", "artifacts/export", "--json"])
    chain = json.loads(capsys.readouterr().out)
    assert chain["commit"] is None and chain["raw"][0]["files"][0]["sha256"] == raw
    lineage = list(json.loads((project / "artifacts/export/lineage.json").read_text()))
    assert list(chain) == ["export", *lineage, "commit", "overrides"]
    assert chain["parameters"]["train"]["steps"] == CFG.train.steps and EXECUTION.isdisjoint(chain["parameters"])


def test_dvc_gives_the_folder_the_same_hash(project):
    """So that the commit is found in the history of dvc.lock."""
    subprocess.run(["git", "init", "-q", "fresh"], check=True)
    shutil.copytree("artifacts/export", "fresh/export")
    for command in (["init", "-q"], ["add", "-q", "export"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd="fresh", check=True, capture_output=True)
    assert md5_folder(project / "artifacts/export") in (project / "fresh/export.dvc").read_text()


def test_a_complete_chain_verifies_and_what_is_not_on_this_disk_is_listed(project, capsys):
    main(["verify"])
    assert "every file that is here is what was recorded" in capsys.readouterr().out
    shutil.rmtree(project / "data/raw")
    main(["verify"])
    out = capsys.readouterr().out
    assert "not on this disk: data/raw/one/a.txt" in out and "every file that is here" in out


FILES = {
    ("export", "artifacts/export"): "*.gguf hf/model.safetensors lineage.json",
    ("model", "artifacts/model"): "model.safetensors config.json",
    ("tokenizer", "artifacts/tokenizer"): "facts.json tokenizer.model",
    ("evaluation", "artifacts/evaluation"): "tasks/cloze.jsonl",
    ("reports", "reports"): "*.html evaluate.json",
    ("shards", "data/shards"): "train/shard-*.arrow index.json",
    ("clean", "data/clean"): "test/part-*.parquet",
    ("raw", "data/raw"): "manifest.json one/a.txt",
}


@pytest.mark.parametrize(
    ("link", "pattern"),
    [(link, f"{folder}/{name}") for (link, folder), names in FILES.items() for name in names.split()],
)
def test_a_flipped_byte_anywhere_is_found_and_named(project, link, pattern, capsys):
    path = next(iter(sorted(project.glob(pattern))))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit):
        main(["verify"])
    err = capsys.readouterr().err
    assert (
        "the chain is broken" in err
        and f"{link}: {path.relative_to(project)}: changed" in err
        and "Traceback" not in err
    )
    assert err.count(": changed") == 1


def test_a_record_that_was_changed_and_a_folder_that_is_no_export_are_refused(project, capsys):
    record = project / "artifacts/export/proof.json"
    record.write_text(record.read_text().replace('"different": 0', '"different": 1', 1))
    with pytest.raises(ExportError, match=r"proof\.json was changed"):
        trace.trace("artifacts/export", CFG)
    with pytest.raises(SystemExit):
        main(["verify"])
    assert "export: artifacts/export/proof.json: changed" in capsys.readouterr().err
    for call in (verify, lambda folder: trace.trace(str(folder), CFG)):
        with pytest.raises(ExportError):
            call(project / "data")


def sign(export):
    """Writes a proof over the files as they are, as somebody does who wants to hide a change."""
    write_record(export, read_record(export).model_copy(update={"files": hash_files(export)}))


def test_a_proof_that_was_signed_again_is_noticed_by_the_lock_and_without_one_said_to_be_unproved(project, capsys):
    path = project / "artifacts/export/hf/README.md"
    path.write_text(path.read_text().replace("1.5", "1.4"))
    sign(project / "artifacts/export")
    verify_export(project / "artifacts/export")  # it agrees with itself
    with pytest.raises(SystemExit):
        main(["verify"])
    assert "record: artifacts/export/proof.json: changed" in capsys.readouterr().err
    shutil.copytree("artifacts/export", "elsewhere")
    main(["verify", "elsewhere"])
    assert "a proof that was written again would not be noticed: elsewhere" in capsys.readouterr().out


def test_a_file_that_was_added_to_the_data_is_named(project, capsys):
    (project / "data/clean/train/part-00009.parquet").write_bytes(b"more")
    with pytest.raises(SystemExit):
        main(["verify"])
    assert "clean: data/clean/train/part-00009.parquet: added" in capsys.readouterr().err


WRONG = (None, [], {}, "x", 7, [1], {"a": None}, "\ud800", 10**400)


def wrong_values(value):
    """The value with each of its parts, two levels deep, replaced by one of another type."""
    for wrong in WRONG:
        yield wrong
    for key, part in value.items():
        yield {k: v for k, v in value.items() if k != key}
        for wrong in WRONG:
            yield {**value, key: wrong}
        if isinstance(part, dict):
            for inner in part:
                for wrong in WRONG:
                    yield {**value, key: {**part, inner: wrong}}


def without_traceback(capsys, *command):
    """Runs the command; whatever it finds ends in an error of ours."""
    try:
        main(list(command))
    except SystemExit as e:
        assert e.code == 1
        assert capsys.readouterr().err.startswith("error: ")


READERS = {
    "artifacts/export/lineage.json": lambda path: read_lineage(path.parent),
    "artifacts/export/proof.json": lambda path: read_record(path.parent),
    "dvc.lock": read_lock,
}


@pytest.mark.parametrize("name", READERS)
def test_records_of_any_wrong_type_end_in_one_line(project, name, capsys):
    path, refused, accepted = project / name, 0, 0
    for value in wrong_values(yaml.safe_load(path.read_text())):
        if name.endswith("proof.json") and isinstance(value, dict):
            value = {k: v for k, v in value.items() if k != "sha256"}
            value["sha256"] = "" if "\\ud800" in json.dumps(value) else sha256_json(value)
        path.write_text(json.dumps(value))
        try:
            READERS[name](path)
        except FoundryError:
            refused += 1
            continue
        accepted += 1
        if accepted % 40 == 1:  # what a reader takes, the commands can work with
            if name.endswith("lineage.json"):
                sign(project / "artifacts/export")
            without_traceback(capsys, "verify")
            without_traceback(capsys, "trace")
    assert refused > 20


@pytest.mark.parametrize("damage", ["missing", "empty", "folder", "binary", "nested"])
def test_damaged_and_missing_files_of_any_kind_end_in_one_line(project, damage, capsys):
    names = [p for top in ("data", "artifacts", "reports") for p in sorted((project / top).rglob("*")) if p.is_file()]
    names = [p for p in names if p.name != "shard-00000.arrow" or p.parent.name == "test"]  # one file of each kind
    for path in [*names, project / "dvc.lock"]:
        data = path.read_bytes()
        path.unlink()
        if damage == "folder":
            path.mkdir()
        elif damage != "missing":
            path.write_bytes({"empty": b"", "binary": b"\xff\x00\x80", "nested": b"[" * 100_000}[damage])
        for command in ("verify", "trace"):
            without_traceback(capsys, command)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
        path.write_bytes(data)
    assert len(names) > 15
    main(["verify"])


def test_what_cannot_be_rebuilt_is_refused_before_anything_starts(project):
    (project / "dvc.lock").write_text("nothing\n")
    shutil.rmtree(project / ".git")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    with pytest.raises(ConfigError, match=r"commit of artifacts/export is not known here.*--commit"):
        reproduce.reproduce("artifacts/export", CFG)


def test_the_first_link_that_differs_is_named_with_what_differs():
    old = {key: {} for key in reproduce.LINKS} | {
        "parameters": {"a": 1},
        "shards": {"files": {"a": "1", "b": "2"}},
        "model": {"w": 1},
    }
    assert reproduce.differences(old, old) == []
    new = {**old, "shards": {"files": {"a": "1", "b": "3"}}, "model": {"w": 2}}
    assert reproduce.differences(old, new) == ["shards: files.b was 2, now 3", "model: w was 1, now 2"]


def test_parameters_that_the_commit_does_not_have_are_shown(project, capsys):
    text = (project / "params.yaml").read_text()
    (project / "params.yaml").write_text(text + "train: {steps: 300}\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "-qam", "other parameters", "--amend"], cwd=project, check=True)
    main(["trace"])
    out = capsys.readouterr().out
    assert f"train.steps: {CFG.train.steps} (the commit has 300)" in out
    assert out.count("(the commit has") == 1


PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


@pytest.mark.parametrize("preset", [None, *PRESETS], ids=lambda p: p.stem if p else "params")
def test_parameters_that_a_chain_has_are_parameters_that_build_it_again(preset, tmp_path):
    """What `foundry reproduce` writes into the clone is read as what the export was made with."""
    params = read_yaml(ROOT / "params.yaml")
    if preset:
        chosen = read_yaml(preset)
        params |= {k: {**params.get(k, {}), **v} if isinstance(v, dict) else v for k, v in chosen.items()}
    cfg = parse_config(params)
    shutil.copy(ROOT / "params.yaml", tmp_path / "params.yaml")
    parameters = json.loads(json.dumps(cfg.identity()))
    reproduce._set_parameters(tmp_path / "params.yaml", parameters, {"threads": 3})
    again = load_params(tmp_path / "params.yaml")
    assert again.identity() == cfg.identity()
    assert again.runtime.threads == 3 and again.runtime.tracking is False


def test_the_commit_of_a_flows_run_is_known_from_what_the_run_kept(project, capsys):
    """Nobody committed the run's dvc.lock."""
    run = project / ".foundry/runs/0a1b2c3d"
    run.mkdir(parents=True)
    shutil.move(project / "dvc.lock", run / "dvc.lock")
    write_note(run, build_note(head(project)))
    damaged = project / ".foundry/runs/00000000"
    damaged.mkdir()
    (damaged / "dvc.lock").write_text("stages: [")
    write_note(damaged, build_note("x"))
    for command in (["rm", "-q", "--cached", "dvc.lock"], ["commit", "-qm", "never committed", "--amend"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=project, check=True)
    write_note(run, build_note(head(project)))
    main(["trace"])
    assert f"← commit      {head(project)}" in capsys.readouterr().out
