"""The stages chat_evaluate and chat_export on a tiny project: from its folders to the reports and the proved export."""

import logging
import re
import shutil

import pytest
import torch
from example_records import example_cleaning, example_source
from tiny_chat import base_lineage

import stages.chat_evaluate
import stages.chat_export
from foundry.chat.assessment import answers_of_export
from foundry.chat.shards import write_chat
from foundry.chat.table import read_answers
from foundry.cli import main
from foundry.config import DataError, ExportError, parse_config
from foundry.export.lineage import read_lineage
from foundry.export.manifest import verify_export
from foundry.models import TrainingFacts, load_trained_model, save_model
from foundry.tokenizers.chat import TEMPLATE_SHA256
from foundry.utils.chat_report import read_chat_report
from foundry.utils.files import write_json

LOG = logging.getLogger("test")


@pytest.fixture(scope="module")
def cfg():
    return parse_config(
        {
            "download": {"sources": [{"name": "one", "url": "file:corpus/x"}]},
            "chat_evaluate": {"bootstrap": 100, "sampled_prompts": 2, "samples": 2, "forgetting_tokens": 2000},
            "chat_export": {"gguf_types": ["f32"]},
            "runtime": {"device": "cpu", "tracking": False},
        }
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory, answering, tokenizer, chat_data, clean, shards):
    home = tmp_path_factory.mktemp("home")
    base, tuned = answering
    hashes = {"tokenizer_sha256": tokenizer.sha256, "steps": 1, "tokens": 9}
    save_model(home / "artifacts/model", base, TrainingFacts(fingerprint="b" * 16, index_sha256="6" * 64, **hashes))
    _, facts = load_trained_model(home / "artifacts/model")
    began = {
        **dict.fromkeys(("parent_sha256", "base_sha256"), facts.weights_sha256),
        "template_sha256": TEMPLATE_SHA256,
    }
    trained = TrainingFacts(fingerprint="c" * 16, index_sha256="3" * 64, **hashes, **began)
    save_model(home / "artifacts/chat/sft", tuned, trained)
    (home / "artifacts/tokenizer").mkdir()
    shutil.copy(tokenizer.path, home / "artifacts/tokenizer/tokenizer.model")
    examples = {"train": chat_data[0], "test": chat_data[1]}
    (home / "data").mkdir()
    write_chat(home / "data/chat", examples, tokenizer, context=96, verifier_version=1)
    shutil.copytree(shards, home / "data/shards")
    shutil.copytree(clean, home / "data/clean")
    example_cleaning(example_source(license="CC0-1.0", attribution="")).write(home / "reports/clean.json")
    lineage = base_lineage(facts.weights_sha256).model_dump(exclude_unset=True)
    write_json(home / "artifacts/export/lineage.json", lineage)
    return home


@pytest.fixture(scope="module")
def built(home, cfg):
    with pytest.MonkeyPatch.context() as m:
        m.chdir(home)
        m.setenv("DVC_ROOT", str(home))
        stages.chat_evaluate.work(cfg, LOG)
        stages.chat_export.work(cfg, LOG)
    return home


def test_the_report_and_the_page_are_of_the_models_in_the_folders(built):
    report = read_chat_report(built / "reports/chat.json")
    facts = [load_trained_model(built / f)[1] for f in ("artifacts/model", "artifacts/chat/sft")]
    assert [m.weights_sha256 for m in report.models.values()] == [f.weights_sha256 for f in facts]
    assert report.data_sha256 == "3" * 64 and report.pair("base", "sft").verdict == "better"
    assert set(report.lookups) == {"echo", "kind"} and "naive Bayes" in report.lookups["kind"]
    page = (built / "reports/chat_report.html").read_text(encoding="utf-8")
    for part in ("Was it worth it?", "sft against base", "naive Bayes", "wordings that the training lacks", "echo"):
        assert part in page
    assert "http" not in re.sub(r'xmlns="[^"]*"', "", page) and "<script" not in page
    assert len(re.findall(r"<summary>", page)) == 3


def test_the_export_is_of_the_evaluated_model_and_its_chain_names_every_file(built):
    record = verify_export(built / "artifacts/chat/export")
    report = read_chat_report(built / "reports/chat.json").models["sft"]
    assert record.chat.ended == report.ended and record.weights_sha256 == report.weights_sha256
    chat = read_lineage(built / "artifacts/chat/export").chat
    assert [t.stage for t in chat.trainings] == ["sft"] and set(chat.folders) == {"chat data", "sft", "answers"}
    assert "index.json" in chat.folders["chat data"] and "sft/answers.parquet" in chat.folders["answers"]
    assert chat.parameters["chat_export"]["gguf_types"] == ["f32"]


def test_the_same_inputs_give_the_same_bytes(built, cfg, monkeypatch):
    monkeypatch.chdir(built)
    monkeypatch.setenv("DVC_ROOT", str(built))
    before = {p: p.read_bytes() for p in (built / "reports").iterdir()}
    before |= {p: p.read_bytes() for p in (built / "artifacts/chat/evaluation").rglob("*.parquet")}
    stages.chat_evaluate.work(cfg, LOG)
    assert len(before) >= 5 and all(p.read_bytes() == data for p, data in before.items())


def test_compare_tells_the_difference_of_two_tables_of_answers(built, capsys, monkeypatch):
    monkeypatch.chdir(built)
    (built / "params.yaml").write_text("download: {sources: [{name: one, url: 'file:corpus/x'}]}\n")
    tables = [f"artifacts/chat/evaluation/{name}/answers.parquet" for name in ("base", "sft")]
    main(["compare", *tables])
    out = capsys.readouterr().out
    assert "better, macro exact match +" in out and "  kind: +" in out


def test_an_evaluation_of_an_older_model_and_a_missing_base_are_refused(built, cfg, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(built, copy)
    monkeypatch.chdir(copy)
    monkeypatch.setenv("DVC_ROOT", str(copy))
    shutil.rmtree(copy / "artifacts/chat/sft")
    shutil.copytree(copy / "artifacts/model", copy / "artifacts/chat/sft")
    with pytest.raises(DataError, match="not trained to answer"):
        stages.chat_export.work(cfg, LOG)
    shutil.rmtree(copy / "artifacts/chat/sft")
    shutil.copytree(built / "artifacts/chat/sft", copy / "artifacts/chat/sft")
    write_json(copy / "artifacts/export/lineage.json", base_lineage("9" * 64).model_dump(exclude_unset=True))
    with pytest.raises(ExportError, match="run `make repro`, then `make chat`"):
        stages.chat_export.work(cfg, LOG)


def test_an_exported_model_answers_the_prompts_of_a_project_again(built, cfg):
    """A champion that was evaluated on other prompts is asked those of the new version; here they are the same."""
    folder = built / "artifacts/chat/export"
    again = answers_of_export(folder, cfg.chat_evaluate, [], torch.device("cpu"), built)
    assert again.drop_columns("nats").equals(
        read_answers(built / "artifacts/chat/evaluation/sft/answers.parquet").drop_columns("nats")
    )
