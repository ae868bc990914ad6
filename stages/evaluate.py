"""Stage evaluate: artifacts/model/, data/shards/, data/clean/, tasks/ → artifacts/evaluation/ and reports.

The reports are reports/evaluate.json, report.html, samples.md, loss.png, calibration.csv and position.csv.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # restarts the process, so it comes before anything is computed

import pyarrow.parquet as pq

from foundry.config import Config
from foundry.data.tokens.shards import Shards, part_files, read_clean
from foundry.evaluation.baselines import compressing, last_bytes
from foundry.evaluation.documents import Documents, held_out
from foundry.tokenizers import Tokenizer
from foundry.utils.cleaning_report import read_cleaning
from foundry.utils.evaluation_report import CompressedSize, EvaluationReport, HarnessScore
from foundry.utils.files import atomic_dir, atomic_write, write_text
from foundry.utils.stage import run_stage

if TYPE_CHECKING:
    from foundry.models import MiniLLM

OUT = Path("artifacts/evaluation")


def work(cfg: Config, log: logging.Logger) -> None:
    tokenizer = Tokenizer("artifacts/tokenizer")
    test = Shards("data/shards", "test", tokenizer_sha256=tokenizer.sha256)
    rows = (row for part in read_clean("data/clean/test", ["doc_id", "text", "lang"]) for row in part)
    documents = held_out(test, rows, cfg.evaluate.test_bytes)
    if cfg.evaluate.baselines:
        log.info("compressing the test text with xz, zstd and PPMd in the background")
        text = b"".join(t.encode() + b"\n\n" for t in documents.texts)
        compressor = compressing(last_bytes(part_files("data/clean/train")), text)
    else:
        compressor = nullcontext()
    with compressor as compressed:
        _evaluate(cfg, log, tokenizer, test, documents, compressed)


def _evaluate(
    cfg: Config,
    log: logging.Logger,
    tokenizer: Tokenizer,
    test: Shards,
    documents: Documents,
    compressed: Callable[[], dict[str, CompressedSize]] | None,
) -> None:
    """Everything else; its imports load torch, for which the compressors do not wait."""
    from foundry.evaluation.continuations import samples_markdown
    from foundry.evaluation.full_evaluation import evaluate_model
    from foundry.evaluation.plots import TrainingCurves, plot_curves, write_plot_tables
    from foundry.evaluation.report_page import write_report_page
    from foundry.evaluation.tasks import write_tasks
    from foundry.models import load_trained_model
    from foundry.models.training_report import read_training
    from foundry.utils.device import prepare_device

    device = prepare_device(cfg.runtime)
    model, facts = load_trained_model("artifacts/model")
    model.to(device)
    log.info("evaluating on %s", device)
    train_parts = part_files("data/clean/train")
    found = evaluate_model(model, facts, tokenizer, test, documents, train_parts, cfg, log, compressed=compressed)
    report = found.report
    if cfg.evaluate.harness:
        report = report.model_copy(update={"harness": _harness(model, tokenizer, cfg, log)})
    with atomic_dir(OUT) as tmp:
        with atomic_write(tmp / "documents.parquet") as f:
            pq.write_table(found.losses, f)
        write_tasks(tmp / "tasks", found.questions, OUT / "tasks")
    curves = TrainingCurves.read("reports/train.csv", "reports/validation.csv")
    plot_curves(curves, report.ppmd, "reports/loss.png")
    write_plot_tables(report.calibration, report.by_position, "reports")
    write_text("reports/samples.md", samples_markdown(found.samples, cfg.evaluate))
    training, cleaning = read_training("reports/train.json"), read_cleaning("reports/clean.json")
    write_report_page("reports/report.html", report, training, cleaning, found.samples, curves)
    report.write("reports/evaluate.json")
    _log_summary(report, log)


def _harness(model: MiniLLM, tokenizer: Tokenizer, cfg: Config, log: logging.Logger) -> dict[str, HarnessScore]:
    """Scores of the harness's own tasks and of the task files in tasks/, for the model as it will be exported."""
    from foundry.evaluation.harness import run_harness
    from foundry.export.huggingface import export_huggingface

    log.info("running tasks of lm-evaluation-harness: %s", ", ".join(cfg.evaluate.harness))
    with tempfile.TemporaryDirectory() as tmp:
        export_huggingface(model, tokenizer, tmp)
        device = str(next(model.parameters()).device)
        return run_harness(tmp, cfg.evaluate.harness, "tasks", cfg.evaluate.harness_limit, device=device)


def _log_summary(report: EvaluationReport, log: logging.Logger) -> None:
    bpb = report.test.bits_per_byte
    log.info("test: %.4f bits per byte (95 %% interval %.4f to %.4f)", bpb.value, bpb.low, bpb.high)
    for name, size in (report.baselines or {}).items():
        log.info("%s: %.4f bits per byte by itself, %.4f after the training text", name, size.alone, size.given_train)
    for name, task in report.tasks.items():
        percent = (100 * share for share in (task.score, task.low, task.high, task.chance))
        log.info("%s: %.1f %% right (95 %% interval %.1f to %.1f; chance %.0f %%)", name, *percent)
    log.info("wrote reports/evaluate.json; the report to read is reports/report.html")


def main() -> None:
    run_stage("evaluate", work)


if __name__ == "__main__":
    main()
