"""Stage chat_data: data/clean/, data/fields/, corpus/ and artifacts/tokenizer/ → data/chat/ and its reports."""

from __future__ import annotations

import logging
from pathlib import Path

from foundry.chat.data import collect
from foundry.chat.data_report import write_reports
from foundry.chat.shards import write_chat
from foundry.chat.tasks.presets import Corpus
from foundry.chat.verifiers import VERIFIER_VERSION
from foundry.config import Config
from foundry.tokenizers import Tokenizer
from foundry.utils.log import progress
from foundry.utils.stage import run_stage


def work(cfg: Config, log: logging.Logger) -> None:
    tokenizer, context = Tokenizer("artifacts/tokenizer"), cfg.model.max_seq_len
    named = ", ".join([*cfg.chat.presets, *cfg.chat.sources])
    log.info("examples from %s; a conversation may have %d tokens, longer ones: %s", named, context, cfg.chat.too_long)
    corpus = Corpus(Path("data/clean"), Path("data/fields"), {s.name: s.license for s in cfg.download.sources})
    found = collect(cfg.chat, corpus, Path(), tokenizer, context, cfg.seed, log)
    with progress(unit="example", desc="chat_data") as bar:
        index = write_chat(
            "data/chat",
            found.examples,
            tokenizer,
            context=context,
            verifier_version=VERIFIER_VERSION,
            weights=cfg.chat.weights,
            advance=bar.update,
        )
    write_reports(Path("reports"), found, Path("data/chat"), tokenizer, log)
    counts = ", ".join(f"{split.examples:,} {name}" for name, split in index.splits.items())
    log.info("wrote data/chat: %s; template %s, index %s", counts, index.template_sha256[:12], index.sha256[:12])


def main() -> None:
    run_stage("chat_data", work)


if __name__ == "__main__":
    main()
