"""`reports/report.html`: the numbers of the report are on it, it loads nothing, and text cannot become markup."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from scoring import tiny

from foundry.config import Config, Download
from foundry.data.tokens.shards import Shards, part_files, read_clean
from foundry.evaluation.baselines import compressing
from foundry.evaluation.documents import held_out
from foundry.evaluation.full_evaluation import evaluate_model
from foundry.evaluation.plots import TrainingCurves
from foundry.evaluation.report_page import write_report_page
from foundry.models import ModelFacts
from foundry.models.training_report import read_training
from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.log import get_logger

REPORTS = Path(__file__).resolve().parents[2] / "reports"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SOURCE = {"name": "one", "url": "file:corpus/a.txt", "lang": "en", "license": "CC0-1.0"}
EVIL = "<img src=x onerror=alert(1)>{{ 7 * 7 }}"


@pytest.fixture(scope="module")
def evaluation(shards, clean, tokenizer, tmp_path_factory):
    def texts(split):
        return (r["text"] for part in read_clean(clean / split, ["text"]) for r in part)

    cfg = Config(
        download=Download(sources=[SOURCE]),
        tokenizer={"vocab_size": 400},
        evaluate={"bootstrap": 100, "prompts": ["The ", EVIL], "max_new_tokens": 30, "task_items": 10},
        model={"max_seq_len": 64},
        train={"tokens_per_step": 64},
    )
    rows = [r for part in read_clean(clean / "test", ["doc_id", "text", "lang"]) for r in part]
    hashes = {"tokenizer_sha256": tokenizer.sha256, "index_sha256": "1" * 64, "weights_sha256": "0" * 64}
    facts = ModelFacts(fingerprint="f" * 16, **hashes, steps=10, tokens=640)
    test = Shards(shards, "test")
    documents = held_out(test, rows)
    model, parts = tiny(max_seq_len=64), part_files(clean / "train")
    train, text = (b"".join(t.encode() for t in texts(split)) for split in ("train", "test"))
    with pytest.MonkeyPatch.context() as m:
        m.setenv("DVC_ROOT", str(tmp_path_factory.mktemp("project")))
        with compressing(train, text) as compressed:
            return evaluate_model(
                model, facts, tokenizer, test, documents, parts, cfg, get_logger(), compressed=compressed
            )


@pytest.fixture(scope="module")
def page(evaluation, tmp_path_factory):
    training = read_training(REPORTS / "train.json")
    documents = {"incoming": 10, "kept": 8, "dropped": {"too_short": 2}, "repaired": {}}
    cleaning = CleaningReport(
        documents=documents,
        records={"incoming": 10, "quarantined": 0, "reasons": {}, "examples": []},
        splits={},
        leakage={"held_out": 0, "similar_in_training": None, "recall": None, "groups": 0, "grouped": 0, "largest": 1},
        languages={"en": 8},
        per_source={"one": {**documents, "records": 10, "quarantined": 0, "bytes": 99}},
        sources=[{**SOURCE, "attribution": EVIL, "member": None, "sha256": "5" * 64, "files": 1, "bytes": 99}],
    )
    steps = range(1, 9)
    tokens = [float(t) for t in steps]
    curves = TrainingCurves(tokens, [6 - t / 9 for t in steps], [0.1] * 8, tokens, [4 - t / 9 for t in steps])
    path = tmp_path_factory.mktemp("page") / "report.html"
    args = (evaluation.report, training, cleaning, evaluation.samples, curves)
    write_report_page(path, *args)
    first = path.read_bytes()
    write_report_page(path, *args)
    assert path.read_bytes() == first  # a function of its inputs
    return path


def intervals(value):
    """Every {value, low, high} of the report."""
    if isinstance(value, dict):
        if {"value", "low", "high"} <= set(value):
            yield value
        for v in value.values():
            yield from intervals(v)
    elif isinstance(value, list):
        for v in value:
            yield from intervals(v)


def test_every_number_of_the_report_is_inside_its_interval(evaluation):
    found = list(intervals(evaluation.report.to_dict()))
    assert len(found) > 25
    assert all(i["low"] <= i["value"] <= i["high"] for i in found)
    r = evaluation.report.to_dict()
    for group in ("by_source", "by_lang", "by_length"):
        assert sum(p["documents"] for p in r[group].values()) == r["test"]["documents"]
        assert sum(p["bytes"] for p in r[group].values()) == r["test"]["bytes"]
    assert (
        sum(p["tokens"] for p in r["by_position"])
        == r["test"]["tokens"]
        == evaluation.losses["tokens"].to_numpy().sum()
    )
    assert set(r["tasks"]) == {"cloze", "minimal_pairs"} and set(r["samples"]) == {"greedy", "sampled"}
    assert r["uniform"]["tokens"] > r["test"]["bits_per_byte"]["value"] * 0.5 and r["uniform"]["bytes"] == 8.0


def test_the_page_shows_the_numbers_and_loads_nothing(page, evaluation):
    html = page.read_text(encoding="utf-8")
    assert not re.search(r"""\bsrc\s*=|href\s*=\s*["'](?!#)|@import|url\((?!#)|<script""", html.replace("src=x", ""))
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html))
    b = evaluation.report.test.bits_per_byte
    assert f"{b.value:.4f} {b.low:.4f} to {b.high:.4f}" in text
    for section in (
        "Training",
        "Test text",
        "compressed",
        "Use of the context",
        "Calibration",
        "Questions",
        "fool these",
        "What it writes",
        "Data",
        "Chain of custody",
    ):
        assert section in text
    assert html.count("<svg") == 3
    assert "<img" not in html and "&lt;img src=x onerror=alert(1)&gt;{{ 7 * 7 }}" in html


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: apt-get install chromium")
def test_a_browser_draws_the_page(page, tmp_path):
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1000,2600",
    ]
    shot = tmp_path / "page.png"
    dom = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Chain of custody" in dom.stdout
    subprocess.run(
        [CHROMIUM, *options, f"--screenshot={shot}", page.as_uri()], capture_output=True, timeout=120, check=True
    )
    import matplotlib.image

    image = matplotlib.image.imread(shot)[:, :, :3]
    blue = (abs(image - [0x1F / 255, 0x77 / 255, 0xB4 / 255]).max(-1) < 0.02).sum()
    assert blue > 500  # the curves are drawn
