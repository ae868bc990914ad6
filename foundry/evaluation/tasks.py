"""Multiple-choice questions made from the test text itself, in any language, and the model's answers to them.

    cloze           which of four passages comes next? One is from the document itself, three are from other documents
    minimal_pairs   which of two passages is as it was written? In the other, two neighbouring words are swapped
                    (in scripts without spaces, two neighbouring characters)

The model answers with the choice that has the highest probability after the context (`acc`), and a second time per
character (`acc_norm`), by the rules of lm-evaluation-harness: the context begins with the begin symbol, only the tokens
of the choice are scored, and what is too long loses its beginning. So the harness, run on the export with
`add_bos_token=True`, gives the same answers; the folder of the questions contains task files for it. The user's own
questions are in `foundry.evaluation.questions`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import yaml

from foundry.data.tokens.documents import Window
from foundry.evaluation.choices import choice_nats
from foundry.evaluation.documents import Documents
from foundry.evaluation.intervals import ratio_interval
from foundry.evaluation.questions import Question
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.utils.evaluation_report import TaskScore
from foundry.utils.files import write_text

CONTEXT, CHOICE, OPTIONS = 300, 60, 4  # characters of a context and of a choice; choices of a cloze question


@dataclass(frozen=True)
class Cut:
    """Places in a text, in characters: the context is from `begin` to `at`, the passage after it from `at` to `end`."""

    begin: int
    at: int
    end: int


def make_tasks(names: Sequence[str], documents: Documents, items: int, seed: int) -> dict[str, list[Question]]:
    """Makes questions of the named kinds.

    What is drawn for a document depends on the document and the seed only.

    Args:
        items: most questions per kind; a document gives at most one of each kind.
    """
    order = sorted(range(len(documents)), key=lambda d: documents.doc_ids[d])
    cuts = {d: cut for d in order if (cut := _cut(documents.texts[d], _rng(seed, documents.doc_ids[d])))}
    makers = {"cloze": _cloze, "minimal_pairs": _minimal_pairs}
    out: dict[str, list[Question]] = {}
    for name in names:
        made = (makers[name](d, cuts, documents, _rng(seed + 1, documents.doc_ids[d])) for d in cuts)
        out[name] = [q for q in made if q][:items]
    return out


def _rng(seed: int, doc_id: str) -> np.random.Generator:
    return np.random.default_rng([seed, *doc_id.encode()])


def _cut(text: str, rng: np.random.Generator) -> Cut | None:
    """A random context and the passage after it, cut at the ends of words where the script has any."""
    if len(text) < 2 * CHOICE + 20:
        return None
    at = _word_end(text, int(rng.integers(CHOICE, min(CONTEXT, len(text) - CHOICE))))
    end = _word_end(text, at + CHOICE)
    return Cut(max(0, at - CONTEXT), at, end) if end - at >= CHOICE // 2 else None


def _word_end(text: str, at: int) -> int:
    """The first place from `at` on where a word ends; `at` itself if there is none within 20 characters."""
    space = re.compile(r"\s").search(text, at, at + 20)
    return min(space.start() if space else at, len(text))


def _cloze(d: int, cuts: Mapping[int, Cut], documents: Documents, rng: np.random.Generator) -> Question | None:
    cut, text = cuts[d], documents.texts[d]
    alike = [o for o in cuts if o != d and documents.sources[o] == documents.sources[d]]
    alike = alike if len(alike) >= OPTIONS - 1 else [o for o in cuts if o != d]
    if len(alike) < OPTIONS - 1:
        return None
    right = text[cut.at : cut.end]
    others = [documents.texts[o][cuts[o].at : cuts[o].end] for o in rng.choice(alike, OPTIONS - 1, replace=False)]
    if right in others:
        return None
    label = int(rng.integers(OPTIONS))
    choices = (*others[:label], right, *others[label:])
    return Question(documents.doc_ids[d], text[cut.begin : cut.at], choices, label)


def _minimal_pairs(d: int, cuts: Mapping[int, Cut], documents: Documents, rng: np.random.Generator) -> Question | None:
    cut, text = cuts[d], documents.texts[d]
    right = text[cut.at : cut.end]
    pieces = re.findall(r"\S+|\s+", right)
    words = [k for k, piece in enumerate(pieces) if piece[0].isalnum() and piece[-1].isalnum()]
    pairs = [(a, b) for a, b in pairwise(words) if b - a == 2 and pieces[a].lower() != pieces[b].lower()]
    if not pairs:  # no spaces
        pieces = list(right)
        pairs = [
            (k, k + 1) for k in range(len(pieces) - 1) if right[k : k + 2].isalpha() and pieces[k] != pieces[k + 1]
        ]
    if not pairs:
        return None
    a, b = pairs[int(rng.integers(len(pairs)))]
    pieces[a], pieces[b] = pieces[b], pieces[a]
    wrong, label = "".join(pieces), int(rng.integers(2))
    if wrong == right:
        return None
    choices = (right, wrong) if label == 0 else (wrong, right)
    return Question(documents.doc_ids[d], text[cut.begin : cut.at], choices, label)


@dataclass(frozen=True)
class Answers:
    """bool (questions,): whether the answer is right, by probability and by probability per character."""

    right: np.ndarray
    right_per_character: np.ndarray


def answer(model: MiniLLM, tokenizer: Tokenizer, questions: Sequence[Question]) -> Answers:
    """Answers questions.

    White space that ends a context belongs to the choice, and the cut is made in the tokens of both together, as
    lm-evaluation-harness does.
    """
    right, per_character = np.zeros(len(questions), bool), np.zeros(len(questions), bool)
    costs = choice_nats(model, [_windows(q, tokenizer, model.cfg.max_seq_len) for q in questions])
    for q, (question, cost) in enumerate(zip(questions, costs, strict=True)):
        right[q] = int(np.argmin(cost)) == question.label
        per_character[q] = int(np.argmin(cost / [len(c) for c in question.choices])) == question.label
    return Answers(right, per_character)


def _windows(question: Question, tokenizer: Tokenizer, T: int) -> list[Window]:
    """Each choice after the context, in windows of at most `T` inputs."""
    context, out = len(tokenizer.encode(question.context.rstrip(), bos=True)), []  # tokens
    for number, choice in enumerate(question.choices):
        ids = tokenizer.encode(question.context + choice, bos=True)
        first = max(0, context - 1)  # of the targets
        dropped = max(0, len(ids) - (T + 1))
        out.append(Window(number, np.array(ids[dropped:], np.int64), max(0, first - dropped)))
    return out


def task_score(
    model: MiniLLM, tokenizer: Tokenizer, questions: Sequence[Question], resamples: int, seed: int
) -> TaskScore:
    """Shares of right answers, with intervals over the questions."""
    answers = answer(model, tokenizer, questions)
    one = np.ones(len(questions))
    acc, norm = (ratio_interval(x, one, resamples, seed) for x in (answers.right, answers.right_per_character))
    chance = float(np.mean([1 / len(q.choices) for q in questions]))
    return TaskScore(
        score=acc.value, low=acc.low, high=acc.high, acc_norm=norm, chance=round(chance, 4), n=len(questions)
    )


def write_tasks(folder: Path, tasks: Mapping[str, Sequence[Question]], final: Path) -> None:
    """Writes the questions of each kind as JSON lines {id, context, choices, label}, and a task file of the harness.

    Args:
        final: where the folder will be, relative to the project: the harness looks for its data from there.
    """
    for name, questions in tasks.items():
        rows = [{"id": q.id, "context": q.context, "choices": list(q.choices), "label": q.label} for q in questions]
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        task = {
            "task": f"foundry_{name}",
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": (final / f"{name}.jsonl").as_posix()}},
            "test_split": "test",
            "output_type": "multiple_choice",
            "doc_to_text": "{{context}}",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        write_text(folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False))
