"""The evaluation of a project's models that answer, from its folders to the report. Behind chat and align_evaluate.

The chain of models is the base model, the fine-tuned one, and the aligned ones; each is compared with all before it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from foundry.chat.answers import Asked, answer_all
from foundry.chat.baselines import lookup
from foundry.chat.evaluate import ChatEvaluation, Subject, answers_table, evaluate_answers
from foundry.chat.examples import read_examples
from foundry.chat.prompts import HeldOutPrompt, Training, held_out_prompts
from foundry.chat.tuned import Stage, load_tuned
from foundry.chat.verifiers import load_verifiers
from foundry.config.chat import ChatEvaluate
from foundry.data.tokens.documents import spread_documents
from foundry.data.tokens.shards import Shards
from foundry.export.huggingface import import_huggingface
from foundry.models import MiniLLM, load_trained_model
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_dir, atomic_write, make_folder
from foundry.utils.inputs import find_inputs

ANSWERS = "answers.parquet"


@dataclass(frozen=True)
class Assessment:
    """What an evaluation found, with the prompts that the models answered."""

    evaluation: ChatEvaluation
    prompts: list[HeldOutPrompt]


def assess(
    stages: Sequence[Stage],
    params: ChatEvaluate,
    verifiers: Sequence[str],
    seed: int,
    device: torch.device,
    log: logging.Logger,
    root: str | Path = ".",
) -> Assessment:
    """Evaluates the base model and the models of some stages of post-training.

    Args:
        stages: in the order of their training.
        verifiers: globs of the user's programs, see `chat.verifiers`.

    Raises:
        FoundryError: if a file is missing or damaged, the data are not fit for an evaluation, or a verifier fails.
    """
    root = Path(root)
    tokenizer = Tokenizer(root / "artifacts/tokenizer")
    _load_verifiers(verifiers, root)
    train = read_examples(root / "data/chat", "train")
    training = Training.of(train)
    base, base_facts = load_trained_model(root / "artifacts/model")
    prompts = held_out_prompts(
        read_examples(root / "data/chat", "test"), training, tokenizer, base.cfg.max_seq_len, params
    )
    tasks = len({p.example.task for p in prompts})
    log.info("%d test prompts of %d tasks for base, %s; on %s", len(prompts), tasks, ", ".join(stages), device)
    baselines = lookup(train, [p.example for p in prompts])
    del train
    tuned = [load_tuned(stage, root) for stage in stages]

    @cache  # a parent is used again
    def model_of(name: str) -> MiniLLM:
        found = base if name == "base" else next(t.model for t in tuned if t.stage == name)
        return found.to(device)

    subjects = [Subject("base", lambda: model_of("base"), base_facts.weights_sha256)]
    for t in tuned:
        parent = "base" if t.stage == "sft" else "sft"
        subjects.append(
            Subject(t.stage, lambda name=t.stage: model_of(name), t.facts.weights_sha256, parent, t.template_sha256)
        )
    shards = Shards(root / "data/shards", "test", tokenizer_sha256=tokenizer.sha256)
    evaluation = evaluate_answers(
        subjects,
        prompts,
        training,
        tokenizer,
        spread_documents(shards, params.forgetting_tokens),
        params,
        seed,
        log,
        data_sha256=tuned[0].facts.index_sha256,
        baselines=baselines,
    )
    return Assessment(evaluation, prompts)


def answers_of_export(
    folder: Path, params: ChatEvaluate, verifiers: Sequence[str], device: torch.device, root: Path
) -> pa.Table:
    """The answers of an exported model to the test prompts of a project, whatever prompts it was evaluated on.

    Args:
        folder: the export, whose files were verified.

    Raises:
        FoundryError: as `assess`.
    """
    _load_verifiers(verifiers, root)
    model, tokenizer = import_huggingface(folder / "hf")
    training = Training.of(read_examples(root / "data/chat", "train"))
    test = read_examples(root / "data/chat", "test")
    prompts = held_out_prompts(test, training, tokenizer, model.cfg.max_seq_len, params)
    answers = answer_all(model.to(device), tokenizer, [Asked(p.ids, p.max_tokens) for p in prompts])
    return answers_table(model, tokenizer, prompts, answers)


def _load_verifiers(verifiers: Sequence[str], root: Path) -> None:
    for pattern in verifiers:
        for path in find_inputs(pattern, root, "chat.verifiers"):
            load_verifiers(path)


def write_tables(folder: str | Path, tables: dict[str, pa.Table]) -> None:
    """Writes the answers of each model as `NAME/answers.parquet`, completely or not at all."""
    with atomic_dir(folder) as tmp:
        for name, table in tables.items():
            make_folder(tmp / name)
            with atomic_write(tmp / name / ANSWERS) as f:
                pq.write_table(table, f)
