"""Stage shard: data/clean/ and artifacts/tokenizer/ → data/shards/."""

import logging

from foundry.config import Config
from foundry.data.tokens.shard_writer import write_shards
from foundry.tokenizers import Tokenizer
from foundry.utils.files import write_json
from foundry.utils.log import progress
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    tokenizer = Tokenizer("artifacts/tokenizer")
    with progress(unit="doc", desc="shard") as bar:
        index = write_shards("data/clean", tokenizer, cfg.shard, "data/shards", bar.update, cfg.runtime.workers)
    totals = {
        split: entry.model_dump(exclude={"shards"}) | {"shards": len(entry.shards)}
        for split, entry in index.splits.items()
    }
    write_json("reports/shard.json", totals)
    for split, entry in index.splits.items():
        log.info(
            "%-5s %7d documents, %11s tokens in %d shards; %s tokens per epoch",
            split,
            entry.documents,
            f"{entry.tokens:,}",
            len(entry.shards),
            f"{entry.epoch_tokens:,}",
        )


def main() -> None:
    run_stage("shard", work)


if __name__ == "__main__":
    main()
