"""Stage export: artifacts/model/, artifacts/tokenizer/, reports/ → artifacts/export/, and a version in MLflow."""

import logging
from itertools import islice

from foundry.config import Config, TrackingError
from foundry.data.shards import read_clean
from foundry.export.bundle import export
from foundry.models import load_model
from foundry.tokenizers import Tokenizer
from foundry.utils.files import read_json
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    model, facts = load_model("artifacts/model")
    report = read_json("reports/evaluate.json", "the evaluation; run `dvc repro evaluate`")
    sources = read_json("reports/clean.json", "the cleaning's report; run `dvc repro clean`")["sources"]
    texts = [
        row["text"] for row in islice((row for rows in read_clean("data/clean/test", ["text"]) for row in rows), 64)
    ]
    prompts = ["The ", *(t[:40] for t in texts[:3])]
    parity = export(
        "artifacts/export", model, facts, Tokenizer("artifacts/tokenizer"), report, sources, texts, prompts, cfg.export
    )
    proof = parity["proof"]
    log.info(
        "proved: %d tensors bit for bit, logits of %d tokens, ids of %d strings, %d greedy tokens; %d GGUF tensors",
        proof["weights"]["tensors"], proof["logits"]["tokens"], proof["token_ids"]["strings"], proof["greedy"]["tokens"], proof["gguf"]["tensors"],
    )  # fmt: skip
    log.info("wrote artifacts/export: hf/ and %s", next(n for n in parity["files"] if n.endswith(".gguf")))
    if cfg.runtime.tracking:
        _register(cfg, log)


def _register(cfg: Config, log: logging.Logger) -> None:
    """A side effect (law 10): when it fails the export is as good, and the command does it later."""
    from foundry.registering import register_export

    try:
        done = register_export(cfg)
    except TrackingError as e:
        log.warning("%s", e)
        return
    log.info(
        "version %s of %s: %s; %s",
        done.version,
        done.name,
        "new" if done.created else "was registered before",
        done.reason,
    )


def main() -> None:
    run_stage("export", work)


if __name__ == "__main__":
    main()
