"""What parameters decide is reported by `foundry check` and `foundry plan`, before any work."""

import json
from pathlib import Path

import pytest

from foundry import cli
from foundry.config import ExportError, load_params, parse_config
from foundry.export import exportable
from foundry.project import check
from foundry.project.check import findings

BASE = "download: {{sources: [{{name: one, url: 'file:corpus/x', text: '{text}'}}]}}\n"


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def write(sections: str = "", text: str = "{{text}}") -> None:
        (tmp_path / "params.yaml").write_text(BASE.format(text=text.format()) + sections)

    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/x").write_text("a text")
    write()
    return write


def run(capsys, *args: str) -> tuple[int, str, str]:
    code = 0
    try:
        cli.main(list(args))
    except SystemExit as e:
        code = int(e.code or 0)
    seen = capsys.readouterr()
    return code, seen.out, seen.err


@pytest.mark.parametrize(
    ("sections", "names"),
    [
        ("model: {dim: 40, n_heads: 2}\nexport: {gguf_types: [f32, q8_0]}", ["model.dim is 40", "q8_0"]),
        ("tokenizer: {byte_fallback: false}", ["tokenizer.byte_fallback"]),
        ("tokenizer: {kind: unigram}", ["tokenizer.kind"]),
        ("tokenizer: {user_symbols: ['<|eot_id|>']}", ["tokenizer.user_symbols", "<|eot_id|>"]),
        ("model: {logit_softcap: 30.0, sliding_window: 64}", ["model.logit_softcap", "model.sliding_window"]),
        ("export: {model_name: phi-3-mini}", ["export.model_name"]),
    ],
)
def test_check_and_plan_report_what_will_not_export_in_the_words_of_the_export(project, capsys, sections, names):
    project(sections)
    cfg = load_params("params.yaml")
    reasons = findings(cfg, Path()).export
    with pytest.raises(ExportError) as e:
        exportable.refuse(exportable.export_problems(cfg))
    for args in (["check"], ["plan"]):
        code, out, _ = run(capsys, *args)
        assert code == 0
        said = [
            line.removeprefix("will not export: ") for line in out.splitlines() if line.startswith("will not export")
        ]
        assert said == reasons and all(reason in str(e.value) for reason in said)
        assert all(any(name in line for line in said) for name in names)
    code, out, _ = run(capsys, "plan", "--json")
    assert json.loads(out)["will_not_export"] == reasons


def test_parameters_that_export_cause_no_warning(project, capsys):
    for args in (["check"], ["plan"]):
        code, out, _ = run(capsys, *args)
        assert code == 0 and "will not export" not in out and "note:" not in out


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ("evaluate: {task_files: [tasks/*.jsonl]}", "evaluate.task_files"),
        ("evaluate: {task_files: [tasks/bad]}", "'choices'"),
        ("clean: {block_lists: [corpus/none.txt]}", "clean.block_lists"),
        ("clean: {decontaminate: [corpus/none.txt]}", "clean.decontaminate"),
        ("clean: {decontaminate: [corpus/odd.pdf]}", "neither .txt nor .jsonl"),
        ("tokenizer: {reference: corpus/none.model}", "tokenizer.reference"),
        ("chat: {sources: [corpus/none.jsonl]}", "chat.sources"),
        ("chat: {verifiers: [corpus/none.py]}", "chat.verifiers"),
        ("preferences: {sources: [corpus/none.jsonl]}", "preferences.sources"),
    ],
)
def test_a_file_that_a_later_stage_would_miss_is_reported_before_the_first(project, capsys, tmp_path, sections, words):
    for folder in ("tasks", "corpus"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "tasks/bad").write_text('{"context": "a", "choices": ["b"], "label": 0}\n')
    (tmp_path / "corpus/odd.pdf").write_text("x")
    project(sections)
    for args in (["check"], ["plan"]):
        code, _, err = run(capsys, *args)
        assert code == 1 and err.startswith("error: params.yaml has 1 problem:") and words in err


def test_every_problem_of_the_sources_and_packages_is_reported_at_once(project, capsys, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    project("runtime: {executor: ray, tensorboard: board}\nevaluate: {harness: [piqa]}", text="{{x!r}}")
    code, _, err = run(capsys, "check")
    assert code == 1 and "4 problems" in err
    for words in (
        "foundry-lm[ray]",
        "foundry-lm[tensorboard]",
        "foundry-lm[eval]",
        "download.sources 'one': text template",
    ):
        assert words in err


def test_a_prompt_that_may_not_fit_the_context_is_noted(project, capsys):
    project("evaluate: {prompts: ['short', '" + "x" * 127 + "', '" + "x" * 126 + "']}\nmodel: {max_seq_len: 128}")
    code, out, _ = run(capsys, "check")
    assert code == 0 and "note: evaluate.prompts[1] has 127 bytes" in out and "prompts[2]" not in out


def test_dvc_is_repaired_whatever_is_wrong_with_the_parameters(project, capsys, tmp_path):
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    (tmp_path / ".dvc/tmp/rwlock").write_text("")
    project("train: {steps: -1}")
    code, out, err = run(capsys, "check")
    assert code == 1 and "train.steps" in err and "which a killed DVC left cut off" in out


def test_texts_and_devices_that_are_not_here_yet_are_noted(tmp_path, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    source = {"name": "mine", "url": "file:corpus/*.jsonl", "lang": "en", "license": "CC0-1.0", "attribution": "me"}
    cfg = parse_config({"download": {"sources": [source]}, "runtime": {"device": "cuda"}})
    notes = "\n".join(findings(cfg, tmp_path).notes)
    assert (
        "'mine': file:corpus/*.jsonl matches no file below" in notes
        and "runtime.device: device 'cuda' is not available" in notes
    )
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/a.jsonl").write_text("{}")
    assert "matches no file" not in "\n".join(findings(cfg, tmp_path).notes)
