"""The reports of the chat data: `chat_data.json` (numbers), `chat_rejected.jsonl` (what was quarantined), `chat.html`.

The page shows examples of every task with their tokens coloured by what is learnt.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from foundry.chat.data import Collected
from foundry.chat.examples import read_examples
from foundry.chat.pieces import Piece, pieces
from foundry.chat.proof import prove
from foundry.chat.shards import ChatShards
from foundry.chat.tasks.base import digest
from foundry.data.splits import SPLITS
from foundry.tokenizers import Tokenizer
from foundry.utils.files import atomic_write, write_json, write_text
from foundry.utils.html_page import render_page
from foundry.utils.records import Record

SHOWN_PER_TASK, QUARANTINE_SHOWN = 2, 20


class TaskData(Record):
    """The examples of a task.

    Attributes:
        examples: by split.
        tokens, learnt: of the training split.
        answer_tokens_p50, answer_tokens_p95: learnt tokens of a training example; 0 without one.
        verifiers: that check the answers.
        questions: those that a preset found, None for tasks of files; each was used or is in `dropped`.
    """

    examples: dict[str, int]
    tokens: int
    learnt: int
    answer_tokens_p50: int
    answer_tokens_p95: int
    verifiers: list[str]
    licenses: list[str]
    questions: int | None
    dropped: dict[str, int]


class FileData(Record):
    """Where the records of a file went; see `foundry.chat.formats.FileAccount`."""

    file: str
    format: str
    records: int
    kept: int
    quarantined: dict[str, int]
    ignored: dict[str, int]
    stripped: int
    markers: int


class ChatDataReport(Record):
    """The whole report.

    Attributes:
        context: of the model, in tokens.
        tokens, learnt: of the training split.
        answers: turns of the training split that are learnt, each with its end symbol: `foundry.chat.proof` has
            compared the mask of every example with its turns.
        dropped: conversations of files, by reason.
        cut: conversations of files that lost turns.
        surplus: training examples beyond `chat.max_examples`.
    """

    context: int
    tokens: int
    learnt: int
    answers: int
    examples: dict[str, int]
    tasks: dict[str, TaskData]
    files: list[FileData]
    dropped: dict[str, int]
    cut: int
    surplus: int


class Shown(NamedTuple):
    """An example of the page."""

    task: str
    split: str
    source: str
    doc_id: str | None
    verifier: str | None
    pieces: list[Piece]


def write_reports(folder: Path, collected: Collected, data: Path, tokenizer: Tokenizer, log: logging.Logger) -> None:
    """Writes the three reports, and prints a table of the tasks.

    Args:
        folder: of the reports.
        data: the chat data as it was written.

    Raises:
        DataError: if the shards teach anything else than the answers, see `foundry.chat.proof`.
    """
    shards = ChatShards(data, "train", tokenizer_sha256=tokenizer.sha256)
    answers = {
        split: prove(ChatShards(data, split, tokenizer_sha256=tokenizer.sha256), collected.examples[split], tokenizer)
        for split in SPLITS
    }
    report = _report(collected, shards, answers["train"])
    write_json(folder / "chat_data.json", report.model_dump())
    with atomic_write(folder / "chat_rejected.jsonl", "w") as f:
        for item in collected.quarantined:
            f.write(json.dumps(item._asdict(), ensure_ascii=False) + "\n")
    page = render_page(
        "Chat data",
        __package__,
        "data_page.html",
        report=report,
        shown=list(_shown(shards, tokenizer)),
        splits=SPLITS,
        quarantined=collected.quarantined[:QUARANTINE_SHOWN],
    )
    write_text(folder / "chat.html", page)
    log.info("checked: %s answers are learnt with their end symbols, and nothing else", f"{sum(answers.values()):,}")
    log.info("%-16s %7s %6s %6s %10s %8s %13s  %s", "task", *SPLITS, "tokens", "learnt", "answer 50/95%", "checked by")
    for name, t in report.tasks.items():
        counts = [t.examples[split] for split in SPLITS]
        share = f"{t.learnt / max(1, t.tokens):.1%}"
        lengths = f"{t.answer_tokens_p50} / {t.answer_tokens_p95}"
        log.info(
            "%-16s %7d %6d %6d %10s %8s %13s  %s",
            *(name, *counts, f"{t.tokens:,}", share, lengths, ", ".join(t.verifiers) or "-"),
        )
    for a in report.files:
        refused = ", ".join(f"{n:,} {reason}" for reason, n in a.quarantined.items())
        log.info("%s (%s): %d of %d records kept%s", a.file, a.format, a.kept, a.records, refused and f"; {refused}")
        if a.ignored:
            log.info("%s: keys that are not read: %s", a.file, ", ".join(a.ignored))


def _report(collected: Collected, shards: ChatShards, answers: int) -> ChatDataReport:
    learnt: dict[str, list[int]] = {}
    for example in shards:
        learnt.setdefault(example.task, []).append(int(example.learnt.sum()))
    accounts = [pair for made in collected.presets.values() for pair in made.accounts.items()]
    totals = shards.index.splits["train"].tasks
    names = dict.fromkeys(e.task for split in SPLITS for e in collected.examples[split])
    tasks = {}
    for name in [*names, *dict.fromkeys(task for task, _ in accounts if task not in names)]:
        mine = {split: [e for e in collected.examples[split] if e.task == name] for split in SPLITS}
        every = [e for some in mine.values() for e in some]
        own = [account for task, account in accounts if task == name]
        total, lengths = totals.get(name), learnt.get(name, [0])
        tasks[name] = TaskData(
            examples={split: len(some) for split, some in mine.items()},
            tokens=total.tokens if total else 0,
            learnt=total.learnt if total else 0,
            answer_tokens_p50=int(np.percentile(lengths, 50)),
            answer_tokens_p95=int(np.percentile(lengths, 95)),
            verifiers=sorted({e.verifier for e in every if e.verifier}),
            licenses=sorted({e.license for e in every}),
            questions=sum(a.questions for a in own) if own else None,
            dropped=dict(sum((a.dropped for a in own), Counter())),
        )
    return ChatDataReport(
        context=shards.index.context,
        tokens=sum(t.tokens for t in totals.values()),
        learnt=sum(t.learnt for t in totals.values()),
        answers=answers,
        examples={split: len(some) for split, some in collected.examples.items()},
        tasks=tasks,
        files=[
            FileData(
                file=a.file,
                format=a.format,
                records=a.records,
                kept=a.kept,
                quarantined=dict(a.quarantined.most_common()),
                ignored=dict(a.ignored.most_common()),
                stripped=a.stripped,
                markers=a.markers,
            )
            for a in collected.files
        ],
        dropped=dict(collected.dropped.most_common()),
        cut=collected.cut,
        surplus=collected.surplus,
    )


def _shown(shards: ChatShards, tokenizer: Tokenizer) -> list[Shown]:
    """A few examples of each task, drawn by their numbers."""
    chosen: dict[str, list[tuple[str, int]]] = {}
    encoded = list(shards)
    for place, e in enumerate(encoded):
        chosen.setdefault(e.task, []).append((digest("shown", e.task, e.example), place))
    examples = read_examples(shards.folder, shards.split)
    found = []
    for task, places in chosen.items():
        for _, place in sorted(places)[:SHOWN_PER_TASK]:
            e, origin = encoded[place], examples[encoded[place].example]
            parts = list(pieces(tokenizer, e.tokens.tolist(), e.learnt.tolist()))
            found.append(Shown(task, origin.split, origin.source, origin.doc_id, origin.verifier, parts))
    return found
