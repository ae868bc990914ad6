"""The export of a project's chat model: from its folders to the proved export. Behind chat_export and align_export."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from foundry.chat.card import chat_data
from foundry.chat.examples import read_examples
from foundry.chat.export import export_chat, proof_prompts
from foundry.chat.tuned import PARENTS, Stage, Tuned, load_tuned
from foundry.chat.verifiers import VERIFIER_VERSION
from foundry.config import DataError
from foundry.config.chat import ChatExport
from foundry.data.splits import SPLITS
from foundry.data.tokens.proof_text import proof_text
from foundry.export.lineage import CHAT_FOLDERS, ChatLink, TrainedLink, extended, file_hashes, read_lineage
from foundry.export.proof import ExportRecord
from foundry.export.quantised import HeldOutText
from foundry.tokenizers import Tokenizer
from foundry.utils.chat_report import read_chat_report
from foundry.utils.cleaning_report import read_cleaning


def publish(
    stage: Stage,
    out: str,
    report: str,
    params: ChatExport,
    parameters: dict[str, Any],
    device: torch.device,
    log: logging.Logger,
    root: str | Path = ".",
) -> ExportRecord:
    """Exports the model of a stage of post-training.

    Args:
        out: the folder that is written.
        report: the evaluation that has the model: `reports/chat.json` or `reports/align.json`.
        parameters: identity parameters of post-training, for the lineage.

    Raises:
        FoundryError: if a file is missing or damaged, the parts do not belong together, or the proof fails.
    """
    root = Path(root)
    tuned = load_tuned(stage, root)
    tokenizer = Tokenizer(root / "artifacts/tokenizer")
    evaluation = read_chat_report(root / report, DataError)
    cleaning = read_cleaning(root / "reports/clean.json", DataError)
    lineage = extended(read_lineage(root / "artifacts/export"), _chain(tuned, parameters, root))
    context = tuned.model.cfg.max_seq_len
    text = proof_text(tokenizer, context, root / "data/clean/test")
    by_split = {split: read_examples(root / "data/chat", split) for split in SPLITS}
    kinds = ", ".join(params.gguf_types)
    log.info("exporting the model of %s: %s%s", stage, kinds, " and its adapter" if tuned.adapter else "")
    record = export_chat(
        root / out,
        tuned,
        tokenizer,
        evaluation,
        cleaning,
        chat_data(e for examples in by_split.values() for e in examples),
        text.texts,
        proof_prompts(by_split["test"], tokenizer, context),
        params,
        held_out=HeldOutText(text.batches, text.n_bytes),
        lineage=lineage,
        device=device,
    )
    _log(record, log)
    return record


def _chain(tuned: Tuned, parameters: dict[str, Any], root: Path) -> ChatLink:
    """From the base model up to the exported one, with every file that it was made of and judged by."""
    before = [load_tuned("sft", root)] if PARENTS[tuned.stage] == PARENTS["dpo"] else []
    chain = [*before, tuned]
    links = ["chat data", *(t.stage for t in chain), "answers" if tuned.stage == "sft" else "aligned answers"]
    if (root / CHAT_FOLDERS["fields"]).is_dir():
        links.insert(0, "fields")
    return ChatLink(
        trainings=[
            TrainedLink(
                stage=t.stage,
                weights_sha256=t.facts.weights_sha256,
                parent_sha256=t.parent_sha256,
                fingerprint=t.facts.fingerprint,
                steps=t.facts.steps,
                tokens=t.facts.tokens,
            )
            for t in chain
        ],
        data_sha256=chain[0].facts.index_sha256,
        template_sha256=tuned.template_sha256,
        verifier_version=VERIFIER_VERSION,
        folders={link: file_hashes(root / CHAT_FOLDERS[link]) for link in links},
        parameters=parameters,
    )


def _log(record: ExportRecord, log: logging.Logger) -> None:
    proof, chat = record.proof, record.chat
    log.info(
        "proved: %d tensors bit for bit, logits of %d tokens, ids of %d strings",
        proof.weights.tensors,
        proof.logits.tokens,
        proof.token_ids.strings,
    )
    if chat:
        log.info(
            "proved in %s: ids of %d conversations, %d greedy answers of %d tokens",
            " and ".join(chat.proof.engines),
            chat.proof.conversations,
            chat.proof.greedy.prompts,
            chat.proof.greedy.tokens,
        )
