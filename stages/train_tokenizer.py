"""Stage train_tokenizer: data/clean/train → artifacts/tokenizer/."""

import logging

from foundry.config import Config
from foundry.data.shards import read_clean
from foundry.tokenizers.facts import tokenizer_facts
from foundry.tokenizers.train import train_tokenizer
from foundry.utils.files import atomic_dir, write_json
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    def texts(split: str):
        return (row["text"] for rows in read_clean(f"data/clean/{split}", ["text"]) for row in rows)

    total = sum(row["n_bytes"] for rows in read_clean("data/clean/train", ["n_bytes"]) for row in rows)
    log.info(
        "training %d pieces on %s bytes", cfg.tokenizer.vocab_size, f"{min(total, cfg.tokenizer.max_train_bytes):,}"
    )
    with atomic_dir("artifacts/tokenizer") as tmp:
        used = train_tokenizer(texts("train"), total, cfg.tokenizer, tmp / "tokenizer.model")
        facts = {**tokenizer_facts(tmp, texts("val")), "training": used}
        write_json(tmp / "facts.json", facts)
    write_json("reports/tokenizer.json", facts)
    log.info("wrote artifacts/tokenizer: %.3f bytes per token on the validation text", facts["bytes_per_token"])


def main() -> None:
    run_stage("train_tokenizer", work)


if __name__ == "__main__":
    main()
