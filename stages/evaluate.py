"""Stage evaluate: artifacts/model/, data/shards/, data/clean/ → reports/evaluate.json, samples.md, loss.png."""

import csv
import logging

from foundry.config import Config
from foundry.data.shards import Shards, read_clean
from foundry.evaluation.baselines import baselines
from foundry.evaluation.plots import plot_curve
from foundry.evaluation.report import evaluate
from foundry.evaluation.samples import samples, samples_page
from foundry.inference import Generator
from foundry.models import load_model
from foundry.tokenizers import Tokenizer
from foundry.utils.files import write_json, write_text
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    model, facts = load_model("artifacts/model")
    tokenizer = Tokenizer("artifacts/tokenizer")
    test = Shards("data/shards", "test", tokenizer_sha256=tokenizer.sha256)
    log.info("scoring %d test documents", sum(s["documents"] for s in test.infos))
    report = evaluate(model, facts, test, cfg)
    if cfg.evaluate.baselines:
        log.info("compressing the same bytes with xz and PPMd")
        text = {
            s: b"".join(
                row["text"].encode() + b"\n\n" for rows in read_clean(f"data/clean/{s}", ["text"]) for row in rows
            )
            for s in ("train", "test")
        }
        report["baselines"] = baselines(text["train"], text["test"])
    write_text(
        "reports/samples.md",
        samples_page(samples(Generator(model, tokenizer, "cpu"), cfg.evaluate, cfg.seed), cfg.evaluate),
    )
    ppmd = report.get("baselines", {}).get("ppmd_order_8", {}).get("given_train")
    plot_curve(_rows("reports/train.csv"), _rows("reports/validation.csv"), ppmd, "reports/loss.png")
    write_json("reports/evaluate.json", report)
    bpb = report["test"]["bits_per_byte"]
    log.info("test: %.4f bits per byte (95 %% interval %.4f to %.4f)", bpb["value"], bpb["low"], bpb["high"])
    for name, sizes in report.get("baselines", {}).items():
        log.info("%s: %.4f alone, %.4f given the training text", name, sizes["alone"], sizes["given_train"])


def _rows(path: str) -> list[dict[str, str]]:
    with open(path, encoding="utf-8", newline="") as f:
        return list(csv.DictReader(f))


def main() -> None:
    run_stage("evaluate", work)


if __name__ == "__main__":
    main()
