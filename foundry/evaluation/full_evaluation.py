"""The complete evaluation of a model: everything that the evaluate stage writes, from the model and the text."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from foundry.config import Config
from foundry.data.tokens.shards import Shards, read_texts
from foundry.evaluation.contamination import SharedRuns, shared_runs, training_overlap
from foundry.evaluation.continuations import KINDS, PromptSample, continue_prompts, variety
from foundry.evaluation.documents import Documents
from foundry.evaluation.held_out_scores import score_held_out, scored_text_sha256, uniform
from foundry.evaluation.leak_probe import probe_leaks
from foundry.evaluation.losses import losses_table
from foundry.evaluation.questions import Question, read_task_files
from foundry.evaluation.tasks import make_tasks, task_score
from foundry.inference import Generator
from foundry.models import MiniLLM, ModelFacts
from foundry.tokenizers import Tokenizer
from foundry.utils.evaluation_report import CompressedSize, Contamination, EvaluationReport


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        losses: see `foundry.evaluation.losses`.
        questions: those that were made from the test text, by the name of their kind.
    """

    report: EvaluationReport
    losses: pa.Table
    questions: dict[str, list[Question]]
    samples: list[PromptSample]


def evaluate_model(
    model: MiniLLM,
    facts: ModelFacts,
    tokenizer: Tokenizer,
    test: Shards,
    documents: Documents,
    train_parts: Sequence[Path],
    cfg: Config,
    log: logging.Logger,
    root: str | Path = ".",
    compressed: Callable[[], dict[str, CompressedSize]] | None = None,
) -> Evaluation:
    """Evaluates a model, except for the tasks of lm-evaluation-harness.

    Args:
        model: on the device where everything is computed.
        facts: `config.json` of the trained model.
        test: the shards of the test split.
        documents: those of the split that are scored.
        train_parts: the part files of the training split's clean text.
        root: the folder to which the patterns of `evaluate.task_files` are relative.
        compressed: waits for the bits per byte of compressors on the same documents (`foundry.evaluation.baselines`);
            None leaves them out.

    Raises:
        ConfigError: if a pattern of `task_files` matches no file.
        DataError: if a question is malformed, or the model sees its answers or is damaged.
        FoundryError: if a compressor died.
    """
    params, seed = cfg.evaluate, cfg.seed
    made = make_tasks(params.tasks, documents, params.task_items, seed)
    for name in (k for k, v in made.items() if not v):
        log.warning("no question of the task %s could be made: the test documents are too few or too short", name)
    questions = {**{k: v for k, v in made.items() if v}, **read_task_files(params.task_files, Path(root))}
    leaks = probe_leaks(model, documents.tokens[0], cfg.train.document_mask, seed)
    samples = continue_prompts(Generator(model, tokenizer, next(model.parameters()).device), params, seed)
    found: dict[str, SharedRuns] = {}
    if params.contamination_ngram:
        log.info("looking for runs of %d words in the training text", params.contamination_ngram)
        texts = {f"task {n}": [q.context + q.choices[q.label] for q in asked] for n, asked in questions.items()}
        texts |= {kind: [sample.text(kind) for sample in samples] for kind in KINDS}
        found = shared_runs(
            {"test": documents.texts, **texts}, params.contamination_ngram, train_parts, read_texts, cfg.runtime
        )
    log.info("scoring %d of %d test documents", len(documents), documents.split)
    scores = score_held_out(model, documents, cfg, found.get("test"))
    measured: dict[str, Any] = {}  # what the parameters may leave out
    if found:
        overlap = training_overlap(found["test"], params.bootstrap, seed)
        measured["contamination"] = Contamination(ngram=params.contamination_ngram, **dict(overlap))
    task_scores = {}
    for name, asked in questions.items():
        log.info("asking %d questions of the task %s", len(asked), name)
        task_scores[name] = task_score(model, tokenizer, asked, params.bootstrap, seed)
        if found:
            overlap = training_overlap(found[f"task {name}"], params.bootstrap, seed)
            task_scores[name] = task_scores[name].model_copy(update={"contamination": overlap})
    if compressed:
        measured["baselines"] = compressed()
        measured["uniform"] = uniform(documents, scores.test.tokens, model.cfg.vocab_size)
    report = EvaluationReport(
        test=scores.test,
        by_source=scores.by_source,
        by_lang=scores.by_lang,
        by_length=scores.by_length,
        by_position=scores.by_position,
        calibration=scores.calibration,
        fingerprint=facts.fingerprint,
        weights_sha256=facts.weights_sha256,
        test_sha256=scored_text_sha256(test, documents),
        tasks=task_scores,
        samples={
            kind: variety([sample.text(kind) for sample in samples], found.get(kind), params.bootstrap, seed)
            for kind in KINDS
            if samples
        },
        leaks=leaks,
        **measured,
    )
    return Evaluation(report, losses_table(documents, scores.by_document), made, samples)
