"""A whole evaluation: what the evaluate stage writes, from the model and the text."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from foundry.config import Config
from foundry.data.tokens.shards import Shards, read_texts
from foundry.evaluation import contamination, continuations, tasks
from foundry.evaluation.baselines import baselines, last_bytes
from foundry.evaluation.bits_per_byte import held_out, losses_table
from foundry.evaluation.held_out_scores import score_held_out, uniform
from foundry.evaluation.leak_probe import probe_leaks
from foundry.evaluation.questions import read_questions
from foundry.inference import Generator
from foundry.models import MiniLLM, ModelFacts
from foundry.tokenizers import Tokenizer
from foundry.utils.inputs import find_inputs


@dataclass(frozen=True)
class Evaluation:
    report: dict[str, Any]
    losses: pa.Table
    questions: dict[str, list[tasks.Question]]  # those that were made here
    samples: list[dict[str, str]]


def evaluate_model(
    model: MiniLLM,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    test: Shards,
    rows: Iterable[dict[str, Any]],
    train_parts: Sequence[Path],
    cfg: Config,
    log: logging.Logger,
    root: str | Path = ".",
) -> Evaluation:
    """Everything but what the harness does.

    Args:
        facts: `config.json` of the trained model.
        model: on the device where everything is computed.
        rows: of the test split's clean text: doc_id, text, lang.
        train_parts: the part files of the training split's clean text.
        root: where `evaluate.task_files` are looked for.

    Raises:
        ConfigError: if a pattern of `task_files` matches no file.
        DataError: for an empty test split, a question that is not one, a model that sees its answers or is damaged.
    """
    how, seed = cfg.evaluate, cfg.seed
    documents = held_out(test, rows, how.test_bytes)
    made = tasks.make_tasks(how.tasks, documents, how.task_items, seed)
    asked = {**{k: v for k, v in made.items() if v}, **_task_files(how.task_files, Path(root))}
    for name in (k for k, v in made.items() if not v):
        log.warning("no question of %s could be made: the test documents are too few or too short", name)
    leaks = probe_leaks(model, documents.tokens[0], cfg.train.document_mask, seed)
    written = continuations.continue_prompts(Generator(model, tokenizer, next(model.parameters()).device), how, seed)
    found = {}
    if how.contamination_ngram:
        log.info("looking for runs of %d words in the training text", how.contamination_ngram)
        texts = {f"task {n}": [q.context + q.choices[q.label] for q in questions] for n, questions in asked.items()}
        texts |= {kind: [row[kind] for row in written] for kind in continuations.KINDS}
        found = contamination.overlap(
            {"test": documents.texts, **texts}, how.contamination_ngram, train_parts, read_texts, cfg.runtime
        )
    log.info("scoring %d of %d test documents", len(documents), documents.split)
    report, scores = score_held_out(model, facts, test, documents, cfg, found.get("test"))
    if found:
        report["contamination"] = {
            "ngram": how.contamination_ngram,
            **contamination.summary(found["test"], how.bootstrap, seed),
        }
    report["tasks"] = {}
    for name, questions in asked.items():
        log.info("asking %d questions of %s", len(questions), name)
        report["tasks"][name] = tasks.task_score(model, tokenizer, questions, how.bootstrap, seed)
        if found:
            report["tasks"][name]["contamination"] = contamination.summary(found[f"task {name}"], how.bootstrap, seed)
    report["samples"] = {
        kind: continuations.variety([row[kind] for row in written], found.get(kind), how.bootstrap, seed)
        for kind in continuations.KINDS
        if written
    }
    report["leaks"] = leaks
    if how.baselines:
        log.info("compressing the same bytes with xz, zstd and PPMd")
        held = b"".join(t.encode() + b"\n\n" for t in documents.texts)
        report["baselines"] = baselines(last_bytes(train_parts), held)
        report["uniform"] = uniform(documents, int(scores.tokens.sum()), model.cfg.vocab_size)
    return Evaluation(report, losses_table(documents, scores), made, written)


def _task_files(patterns: list[str], root: Path) -> dict[str, list[tasks.Question]]:
    """{name of the file: its questions}."""
    out = {}
    for pattern in patterns:
        out |= {p.stem: read_questions(p) for p in find_inputs(pattern, root, "evaluate.task_files")}
    return out
