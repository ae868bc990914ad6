"""Multiple-choice questions: two kinds made from the test text itself, in any language, and the user's own.

    cloze           which of four passages goes on from here? One is the document's own, three are of other documents
    minimal_pairs   which of two passages is as it was written? In the other, two neighbouring words have changed places
                    (in scripts without spaces, two neighbouring characters)

A question is a JSON line {id, context, choices, label}. The model answers with the choice to which it gives the highest probability after the
context (`acc`), and once more per character (`acc_norm`), with the rules of lm-evaluation-harness: the context from the begin symbol, tokens
of the choice alone are scored, what is too long loses its beginning. So the harness, run on the export with `add_bos_token=True`, gives the
same answers; the folder of the questions holds its task files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from foundry.data.tokens.documents import Window, batches
from foundry.evaluation.bits_per_byte import BATCH_TOKENS, Documents
from foundry.evaluation.intervals import ratio_interval
from foundry.evaluation.questions import Question
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents
from foundry.tokenizers import Tokenizer
from foundry.utils.files import write_text

CONTEXT, CHOICE, OPTIONS = 300, 60, 4  # characters of a context and of a choice; choices of a cloze question


def make_tasks(names: Sequence[str], documents: Documents, items: int, seed: int) -> dict[str, list[Question]]:
    """The named kinds of question, at most `items` each and one a document. A document's draw depends on itself and the seed alone."""
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


def _cut(text: str, rng: np.random.Generator) -> tuple[int, int, int] | None:
    """(begin of the context, begin and end of the passage after it), at the ends of words where the script has any."""
    if len(text) < 2 * CHOICE + 20:
        return None
    at = _word_end(text, int(rng.integers(CHOICE, min(CONTEXT, len(text) - CHOICE))))
    end = _word_end(text, at + CHOICE)
    return (max(0, at - CONTEXT), at, end) if end - at >= CHOICE // 2 else None


def _word_end(text: str, at: int) -> int:
    """The nearest place from `at` on where a word ends; `at` itself if there is none within 20 characters."""
    space = re.compile(r"\s").search(text, at, at + 20)
    return min(space.start() if space else at, len(text))


def _cloze(d: int, cuts: dict, documents: Documents, rng: np.random.Generator) -> Question | None:
    begin, at, end = cuts[d]
    alike = [o for o in cuts if o != d and documents.sources[o] == documents.sources[d]]
    alike = alike if len(alike) >= OPTIONS - 1 else [o for o in cuts if o != d]
    if len(alike) < OPTIONS - 1:
        return None
    right = documents.texts[d][at:end]
    others = [documents.texts[o][cuts[o][1] : cuts[o][2]] for o in rng.choice(alike, OPTIONS - 1, replace=False)]
    if right in others:
        return None
    label = int(rng.integers(OPTIONS))
    return Question(
        documents.doc_ids[d], documents.texts[d][begin:at], (*others[:label], right, *others[label:]), label
    )


def _minimal_pairs(d: int, cuts: dict, documents: Documents, rng: np.random.Generator) -> Question | None:
    begin, at, end = cuts[d]
    right = documents.texts[d][at:end]
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
    return Question(
        documents.doc_ids[d], documents.texts[d][begin:at], (right, wrong) if label == 0 else (wrong, right), label
    )


def encode_pair(tokenizer: Tokenizer, context: str, choice: str) -> tuple[list[int], int]:
    """(tokens from the begin symbol on, how many of them are the context): white space that ends the context goes to the choice, and
    the cut is made in the tokens of both together, as lm-evaluation-harness does."""
    kept = context.rstrip()
    whole = tokenizer.encode(context + choice, bos=True)
    return whole, len(tokenizer.encode(kept, bos=True))


def answer(model: MiniLLM, tokenizer: Tokenizer, questions: Sequence[Question]) -> tuple[np.ndarray, np.ndarray]:
    """(right by probability, right by probability per character), bool (questions,) each."""
    T, items, owner = model.cfg.max_seq_len, [], []
    for q, question in enumerate(questions):
        for choice in question.choices:
            ids, context = encode_pair(tokenizer, question.context, choice)
            first = max(0, context - 1)  # of the targets
            dropped = max(0, len(ids) - (T + 1))
            items.append(Window(len(items), np.array(ids[dropped:], np.int64), max(0, first - dropped)))
            owner.append(q)
    nats, _ = score_documents(model, batches(items, max(1, BATCH_TOKENS // T)), len(items))
    plain, normal = np.zeros(len(questions), bool), np.zeros(len(questions), bool)
    at = 0
    for q, question in enumerate(questions):
        cost = nats[at : at + len(question.choices)]
        at += len(question.choices)
        plain[q] = int(np.argmin(cost)) == question.label
        normal[q] = int(np.argmin(cost / [len(c) for c in question.choices])) == question.label
    return plain, normal


def task_score(
    model: MiniLLM, tokenizer: Tokenizer, questions: Sequence[Question], resamples: int, seed: int
) -> dict[str, Any]:
    """{score, low, high, acc_norm: {value, low, high}, chance, n}: accuracies with intervals over questions."""
    plain, normal = answer(model, tokenizer, questions)
    one = np.ones(len(questions))
    acc, norm = (ratio_interval(x, one, resamples, seed) for x in (plain, normal))
    chance = float(np.mean([1 / len(q.choices) for q in questions]))
    return {
        "score": acc["value"], "low": acc["low"], "high": acc["high"], "acc_norm": norm, "chance": round(chance, 4), "n": len(questions)
    }  # fmt: skip


def write_tasks(folder: Path, tasks: dict[str, list[Question]], final: Path) -> None:
    """JSON lines and a task file of lm-evaluation-harness for each.

    Args:
        final: where the folder will lie, relative to the project: the harness looks for its data from there.
    """
    for name, questions in tasks.items():
        rows = [{"id": q.id, "context": q.context, "choices": list(q.choices), "label": q.label} for q in questions]
        write_text(folder / f"{name}.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        task = {
            "task": f"foundry_{name}", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": (final / f"{name}.jsonl").as_posix()}},
            "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{context}}", "doc_to_choice": "choices",
            "doc_to_target": "label", "target_delimiter": "", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }  # fmt: skip
        write_text(folder / f"{name}.yaml", yaml.safe_dump(task, sort_keys=False))
