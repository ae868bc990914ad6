"""Stage train_tokenizer: data/clean/train → artifacts/tokenizer/."""

import logging
from dataclasses import asdict
from pathlib import Path

from foundry.config import Config
from foundry.data.tokens.shards import read_clean
from foundry.tokenizers.facts import TrainingText, table, tokenizer_facts
from foundry.tokenizers.page import write_page
from foundry.tokenizers.sample import Sample
from foundry.tokenizers.train import train_tokenizer
from foundry.utils.files import atomic_dir, write_json
from foundry.utils.inputs import refuse_linked
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    def rows(split: str, *columns: str):
        return (row for rows in read_clean(f"data/clean/{split}", list(columns)) for row in rows)

    sizes = ((r["doc_id"], r["lang"], r["n_bytes"]) for r in rows("train", "doc_id", "lang", "n_bytes"))
    sample = Sample(sizes, cfg.tokenizer)
    log.info(
        "training %d %s pieces on %s of %s bytes",
        cfg.tokenizer.vocab_size,
        cfg.tokenizer.kind,
        f"{sample.taken:,}",
        f"{sample.bytes:,}",
    )
    texts = (r["text"] for r in rows("train", "doc_id", "lang", "text") if sample.takes(r["doc_id"], r["lang"]))
    if cfg.tokenizer.reference:
        refuse_linked([Path(cfg.tokenizer.reference)], Path(), "tokenizer.reference")
    with atomic_dir("artifacts/tokenizer") as tmp:
        read = train_tokenizer(texts, cfg.tokenizer, tmp / "tokenizer.model")
        held_out = ((r["text"], r["lang"]) for r in rows("val", "text", "lang"))
        facts = tokenizer_facts(tmp, held_out, cfg.tokenizer.reference)
        training = TrainingText(
            corpus_documents=sample.documents,
            corpus_bytes=sample.bytes,
            languages=sample.languages(),
            **asdict(read),
        )
        facts = facts.model_copy(update={"training": training})
        write_json(tmp / "facts.json", facts.to_json())
    write_json("reports/tokenizer.json", facts.to_json())
    write_page("reports/tokenizer.html", facts)
    for line in table(facts):
        log.info("%s", line)
    if facts.lossy_documents:
        log.warning(
            "%d of %d held-out documents lose characters: set tokenizer.byte_fallback: true",
            facts.lossy_documents,
            facts.held_out_documents,
        )
    log.info("wrote artifacts/tokenizer: %.3f bytes per token on the validation text", facts.trained.bytes_per_token)


def main() -> None:
    run_stage("train_tokenizer", work)


if __name__ == "__main__":
    main()
