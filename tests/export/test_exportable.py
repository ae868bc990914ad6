"""What parameters decide about an export is known before anything runs, and the export itself refuses the same."""

import os
import re
import subprocess
import sys

import pytest
from example_records import example_cleaning, example_evaluation

from foundry.config import Export, ExportError, ModelConfig, parse_config
from foundry.export.bundle import export
from foundry.export.exportable import export_problems, format_problems
from foundry.models import ModelFacts


def facts_of(tokenizer):
    hashes = {"tokenizer_sha256": tokenizer.sha256, "weights_sha256": "2" * 64, "index_sha256": "1" * 64}
    return ModelFacts(fingerprint="f" * 16, **hashes, steps=10, tokens=100)


def problems(**sections):
    return export_problems(
        parse_config({"download": {"sources": [{"name": "one", "url": "file:corpus/x"}]}, **sections})
    )


def test_the_default_parameters_can_be_exported():
    assert problems() == []


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"model": {"dim": 40, "n_heads": 4}}, "model.dim is 40: q8_0 and q4_0 need multiples of 32"),
        ({"model": {"ffn_dim": 80}}, "model.ffn_dim is 80: q8_0 and q4_0 need"),
        ({"model": {"logit_softcap": 30.0}}, "model.logit_softcap is 30, .* train with 0"),
        ({"model": {"sliding_window": 8}}, "model.sliding_window is 8, .* train with 0"),
        ({"model": {"norm_eps": 1e-60}}, "model.norm_eps is 1e-60, which is 0 in"),
        ({"tokenizer": {"kind": "unigram"}}, "tokenizer.kind is unigram: .* train with bpe"),
        ({"tokenizer": {"byte_fallback": False}}, "tokenizer.byte_fallback is false: .* train with true"),
        ({"tokenizer": {"user_symbols": ["<|endoftext|>"]}}, "'<|endoftext|>', to which llama.cpp gives a meaning"),
        ({"tokenizer": {"user_symbols": ["s>"]}}, "'s>', which overlaps the control symbol <s>"),
        ({"tokenizer": {"user_symbols": ["x<s>"]}}, "'x<s>', which overlaps the control symbol <s>"),
        ({"tokenizer": {"user_symbols": ["abc", "bcde"]}}, "'abc', whose end 'bc' begins 'bcde'"),
        ({"tokenizer": {"user_symbols": ["ß1", "1äö"]}}, "'ß1', whose end '1' begins '1äö'"),
        ({"export": {"model_name": "our-phi-3-mini"}}, "export.model_name is our-phi-3-mini: llama.cpp takes"),
    ],
)
def test_each_parameter_that_prevents_an_export_is_named_with_what_to_change(sections, expected):
    (reason,) = problems(**sections)
    assert re.search(expected.replace("|", "\\|"), reason), reason


def test_all_reasons_are_reported_at_once():
    reasons = problems(model={"dim": 48, "sliding_window": 8}, tokenizer={"kind": "unigram", "byte_fallback": False})
    assert len(reasons) == 4


def test_what_every_engine_supports_is_not_refused():
    symbols = [
        "<think>",
        "</think>",
        "a b",
        " x",
        "y\t",
        "\n\n",
        "<|tool|>",
        "<|channel|>",
        "abcd",
        "cde",
        "水",
        "q" * 300,
    ]
    assert problems(tokenizer={"user_symbols": symbols}) == []
    assert problems(model={"dim": 40, "n_heads": 4}, export={"gguf_types": ["f32", "f16", "bf16"]}) == []


def test_only_formats_that_cannot_represent_the_model_are_named(model):
    assert format_problems(model.cfg, Export().gguf_types) == []
    narrow = model.cfg.model_copy(update={"dim": 48, "ffn_dim": 80})
    assert format_problems(narrow, ["f32", "f16", "bf16"]) == []
    (reason,) = format_problems(narrow, ["f32", "q4_0"])
    assert reason.startswith("model.dim is 48 and model.ffn_dim is 80: q4_0 needs multiples of 32; leave it out of")


def test_the_export_refuses_the_same_before_it_writes(make_model, tokenizer, tmp_path):
    odd = make_model(
        ModelConfig(vocab_size=400, dim=40, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, sliding_window=8)
    )
    facts = facts_of(tokenizer)
    with pytest.raises(ExportError, match=r"cannot be exported: model\.sliding_window is 8.*; model\.dim is 40.*phi3"):
        params = Export(model_name="phi3")
        export(tmp_path / "out", odd, facts, tokenizer, example_evaluation(), example_cleaning(), [], [], params)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("level", "count"), [("1", 0), ("2", 1)])
def test_an_interpreter_without_docstrings_is_refused_by_name(level, count):
    """transformers' own message blames the exported folder."""
    code = "from foundry.export.exportable import interpreter_problems as f; print(*f(), sep='\\n')"
    env = {**os.environ, "PYTHONOPTIMIZE": level}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True)
    assert done.stdout.count("PYTHONOPTIMIZE or -OO") == count


def test_the_export_asks_the_interpreter_before_it_writes(model, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr("foundry.export.bundle.interpreter_problems", lambda: ["no docstrings"])
    facts = facts_of(tokenizer)
    with pytest.raises(ExportError, match="cannot be exported: no docstrings"):
        export(tmp_path / "out", model, facts, tokenizer, example_evaluation(), example_cleaning(), [], [], Export())
    assert list(tmp_path.iterdir()) == []
