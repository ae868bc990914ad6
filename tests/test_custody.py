"""The chain from a model to the raw bytes: written, printed without a server, broken by a flipped byte anywhere, told by its link."""

import json
import shutil
import subprocess
import sys

import pytest
from scoring import tiny

from foundry import custody
from foundry.cli import main
from foundry.config import ConfigError, Export, ExportError, parse_config
from foundry.data.shards import Shards
from foundry.export import export
from foundry.export.lineage import lineage
from foundry.models import load_model, save_model
from foundry.utils.files import sha256_file, write_json

SOURCE = {"name": "one", "url": "file:corpus/a.txt", "license": "CC0-1.0", "attribution": "us", "lang": "en"}
CFG = parse_config({"download": {"sources": [{"name": "one", "url": "file:corpus/a.txt"}]}})


@pytest.fixture(scope="module")
def whole(tmp_path_factory, clean, shards, tokenizer):
    """A project as the pipeline leaves it, in git, with the hash of its export in a committed dvc.lock."""
    root = tmp_path_factory.mktemp("custody") / "Größe 模型"
    (root / "data/raw/one").mkdir(parents=True)
    (root / "data/raw/one/a.txt").write_text("raw text")
    raw = {"path": "one/a.txt", "sha256": sha256_file(root / "data/raw/one/a.txt"), "bytes": 8}
    write_json(root / "data/raw/manifest.json", {"sources": [{**SOURCE, "files": [raw]}]})
    shutil.copytree(clean, root / "data/clean")
    shutil.copytree(shards, root / "data/shards")
    (root / "artifacts/tokenizer").mkdir(parents=True)
    shutil.copy(tokenizer.path, root / "artifacts/tokenizer/tokenizer.model")
    hashes = {"index_sha256": Shards(shards, "test").index_sha256, "tokenizer_sha256": tokenizer.sha256}
    save_model(
        root / "artifacts/model", tiny(max_seq_len=64), {"fingerprint": "f" * 16, **hashes, "steps": 10, "tokens": 640}
    )
    model, facts = load_model(root / "artifacts/model")
    chain = lineage(root, facts, CFG.model_dump(mode="json", exclude={"runtime"}))
    bpb = {"value": 1.5, "low": 1.4, "high": 1.6}
    report = {
        "test": {"bits_per_byte": bpb, "documents": 3},
        "by_source": {},
        "weights_sha256": facts["weights_sha256"],
        "test_sha256": "3" * 64,
    }
    sources = [{**SOURCE, "sha256": raw["sha256"]}]
    params = Export(model_name="tiny", gguf_types=["f32"])
    export(
        root / "artifacts/export",
        model,
        facts,
        tokenizer,
        report,
        sources,
        ["The salt."],
        ["The"],
        params,
        lineage=chain,
    )
    (root / "dvc.lock").write_text(
        f"outs:\n- path: artifacts/export\n  md5: {custody.dvc_hash(root / 'artifacts/export')}\n"
    )
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
def project(whole, tmp_path, monkeypatch):
    root = shutil.copytree(whole, tmp_path / "project")
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
    _, facts = load_model("artifacts/model")
    raw = sha256_file(project / "data/raw/one/a.txt")
    at = [
        out.index(x)
        for x in (
            facts["weights_sha256"],
            "f" * 16,
            facts["index_sha256"],
            facts["tokenizer_sha256"],
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
    assert chain["parameters"]["train"]["steps"] == CFG.train.steps and "runtime" not in chain["parameters"]


def test_dvc_gives_the_folder_the_same_hash(project):
    """So that the commit is found in the history of dvc.lock."""
    subprocess.run(["git", "init", "-q", "fresh"], check=True)
    shutil.copytree("artifacts/export", "fresh/export")
    for command in (["init", "-q"], ["add", "-q", "export"]):
        subprocess.run([sys.executable, "-m", "dvc", *command], cwd="fresh", check=True, capture_output=True)
    assert custody.dvc_hash(project / "artifacts/export") in (project / "fresh/export.dvc").read_text()


def test_a_whole_chain_verifies_and_what_is_not_here_is_told_apart(project, capsys):
    main(["verify"])
    assert "every file that is here is what was recorded" in capsys.readouterr().out
    shutil.rmtree(project / "data/raw")
    main(["verify"])
    out = capsys.readouterr().out
    assert "not on this disk: data/raw/one/a.txt" in out and "every file that is here" in out


@pytest.mark.parametrize(
    ("link", "pattern"),
    [
        ("export", "artifacts/export/*.gguf"), ("export", "artifacts/export/hf/model.safetensors"), ("export", "artifacts/export/lineage.json"),
        ("model", "artifacts/model/model.safetensors"), ("shards", "data/shards/train/shard-*.arrow"), ("shards", "data/shards/index.json"),
        ("tokenizer", "artifacts/tokenizer/tokenizer.model"), ("clean", "data/clean/test/part-*.parquet"), ("raw", "data/raw/one/a.txt"),
    ],
)  # fmt: skip
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


def test_a_record_that_was_changed_and_a_folder_that_is_no_export_are_refused(project):
    record = project / "artifacts/export/proof.json"
    record.write_text(record.read_text().replace('"different": 0', '"different": 1', 1))
    for call in (custody.verify, lambda folder: custody.trace(str(folder), CFG)):
        with pytest.raises(ExportError, match=r"proof\.json was changed"):
            call(project / "artifacts/export")
        with pytest.raises(ExportError):
            call(project / "data")


def test_what_cannot_be_rebuilt_is_refused_before_anything_starts(project):
    (project / "dvc.lock").write_text("nothing\n")
    shutil.rmtree(project / ".git")
    subprocess.run(["git", "init", "-q"], cwd=project, check=True)
    with pytest.raises(ConfigError, match=r"commit of artifacts/export is not known here.*--commit"):
        custody.reproduce("artifacts/export", CFG)


def test_the_first_link_that_differs_is_named_with_what_differs():
    old = {
        "parameters": {"a": 1},
        "raw": [{"sha256": "x"}],
        "clean": {},
        "tokenizer": {},
        "shards": {"files": {"a": "1", "b": "2"}},
        "model": {"w": 1},
        "export": {},
    }
    assert custody.differences(old, old) == []
    new = {**old, "shards": {"files": {"a": "1", "b": "3"}}, "model": {"w": 2}}
    assert custody.differences(old, new) == ["shards: files.b was 2, now 3", "model: w was 1, now 2"]
