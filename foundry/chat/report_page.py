"""The page about models that answer: how well, beside which lookups, what they forgot, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from foundry.chat.prompts import HeldOutPrompt
from foundry.utils.chat_report import ChatReport
from foundry.utils.files import write_text
from foundry.utils.html_page import render_page

SHOWN = 4  # prompts of each task, those with the smallest keys


@dataclass(frozen=True)
class ShownAnswer:
    """An answer of a model, and whether its verifier accepts it (None: it has none)."""

    model: str
    text: str
    right: bool | None
    ended: bool


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt with the reference and the answers of all models."""

    task: str
    turns: list[tuple[str, str]]
    reference: str | None
    seen: bool
    answers: list[ShownAnswer]


def shown_prompts(prompts: Sequence[HeldOutPrompt], tables: Mapping[str, pa.Table]) -> dict[str, list[ShownPrompt]]:
    """Some prompts of each task, chosen without regard to the answers."""
    rows = {name: {r["prompt"]: r for r in table.to_pylist()} for name, table in tables.items()}
    out: dict[str, list[ShownPrompt]] = {}
    for p in prompts:
        found = out.setdefault(p.example.task, [])
        if len(found) < SHOWN:
            answers = []
            for name, of_model in rows.items():
                r = of_model[p.key]
                answers.append(ShownAnswer(name, r["answer"], r["exact"] if r["primary"] else None, r["ended"]))
            turns = [(t.role, t.content) for t in p.example.prompt]
            found.append(ShownPrompt(p.example.task, turns, p.reference, p.seen, answers))
    return dict(sorted(out.items()))


def write_chat_page(
    path: str | Path, report: ChatReport, prompts: Sequence[HeldOutPrompt], tables: Mapping[str, pa.Table]
) -> None:
    """Renders the page."""
    page = render_page(
        "Answers",
        __package__,
        "report_page.html",
        r=report,
        names=list(report.models),
        last=list(report.models)[-1],
        shown=shown_prompts(prompts, tables),
    )
    write_text(path, page)
