"""Stage evaluate: artifacts/model/, data/shards/, data/clean/, tasks/ → artifacts/evaluation/, reports/evaluate.json, report.html, samples.md, loss.png."""

import csv
import logging
import tempfile
from pathlib import Path

from foundry.utils.allocator import keep_memory

if __name__ == "__main__":
    keep_memory()  # starts the process anew, so it comes before torch is imported

import pyarrow.parquet as pq

from foundry.config import Config
from foundry.data.tokens.shards import Shards, part_files, read_clean
from foundry.evaluation.continuations import samples_markdown
from foundry.evaluation.full_evaluation import evaluate_model
from foundry.evaluation.plots import plot_curve, write_rows
from foundry.evaluation.report_page import write_page
from foundry.evaluation.tasks import write_tasks
from foundry.models import load_trained_model
from foundry.tokenizers import Tokenizer
from foundry.utils.device import prepare_device
from foundry.utils.files import atomic_dir, atomic_write, read_json, write_json, write_text
from foundry.utils.stage import run_stage

OUT = Path("artifacts/evaluation")


def work(cfg: Config, log: logging.Logger) -> None:
    device = prepare_device(cfg.runtime)
    model, facts = load_trained_model("artifacts/model")
    model.to(device)
    log.info("evaluating on %s", device)
    tokenizer = Tokenizer("artifacts/tokenizer")
    test = Shards("data/shards", "test", tokenizer_sha256=tokenizer.sha256)
    rows = (row for part in read_clean("data/clean/test", ["doc_id", "text", "lang"]) for row in part)
    done = evaluate_model(model, facts, tokenizer, test, rows, part_files("data/clean/train"), cfg, log)
    report = done.report
    if cfg.evaluate.harness:
        report["harness"] = _harness(model, tokenizer, cfg, log)
    with atomic_dir(OUT) as tmp:
        with atomic_write(tmp / "documents.parquet") as f:
            pq.write_table(done.losses, f)
        write_tasks(tmp / "tasks", done.questions, OUT / "tasks")
    curve, validations = _rows("reports/train.csv"), _rows("reports/validation.csv")
    ppmd = report.get("baselines", {}).get("ppmd_order_8", {}).get("given_train")
    plot_curve(curve, validations, ppmd, "reports/loss.png")
    write_rows(report["calibration"], report["by_position"], "reports")
    write_text("reports/samples.md", samples_markdown(done.samples, cfg.evaluate))
    train, cleaning = (
        read_json(f"reports/{n}.json", f"the {n} stage's report; run `dvc repro`") for n in ("train", "clean")
    )
    write_page("reports/report.html", report, train, cleaning, done.samples, curve, validations)
    write_json("reports/evaluate.json", report)
    _tell(report, log)


def _harness(model, tokenizer: Tokenizer, cfg: Config, log: logging.Logger) -> dict:
    """The harness's tasks and the task files in tasks/, on the model as it will be exported."""
    from foundry.evaluation.harness import run_harness
    from foundry.export.huggingface import export_huggingface

    log.info("lm-evaluation-harness: %s", ", ".join(cfg.evaluate.harness))
    with tempfile.TemporaryDirectory() as tmp:
        export_huggingface(model, tokenizer, tmp)
        device = str(next(model.parameters()).device)
        return run_harness(tmp, cfg.evaluate.harness, "tasks", cfg.evaluate.harness_limit, device=device)


def _tell(report: dict, log: logging.Logger) -> None:
    bpb = report["test"]["bits_per_byte"]
    log.info("test: %.4f bits per byte (95 %% interval %.4f to %.4f)", bpb["value"], bpb["low"], bpb["high"])
    for name, sizes in report.get("baselines", {}).items():
        log.info("%s: %.4f alone, %.4f given the training text", name, sizes["alone"], sizes["given_train"])
    for name, task in report["tasks"].items():
        log.info(
            "%s: %.1f %% right (%.1f to %.1f; chance %.0f %%)",
            name,
            *(100 * task[k] for k in ("score", "low", "high", "chance")),
        )
    log.info("see reports/report.html")


def _rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def main() -> None:
    run_stage("evaluate", work)


if __name__ == "__main__":
    main()
