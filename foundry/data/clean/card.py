"""The data card: what the corpus is, whom to thank, and what cleaning did to it. A function of `clean.json` alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from foundry.utils.files import write_text
from foundry.utils.markdown import code, inline


def write_card(path: Path, report: dict[str, Any]) -> None:
    write_text(path, card(report))


def card(report: dict[str, Any]) -> str:
    """The card in Markdown; `report` is the content of `reports/clean.json`."""
    per_source, documents = report["per_source"], report["documents"]
    lines = ["# Data card", "", "## Sources", ""]
    for s in report["sources"]:
        lines += [
            f"### {s['name']}",
            "",
            f"- address: {code(s['url'])}" + (f", member {code(s['member'])}" if s["member"] else ""),
            f"- language: {s['lang']}",
            f"- licence: {inline(s['license'])}",
            f"- attribution: {inline(s['attribution']) or 'none given'}",
            f"- sha256{' of the list of files and their hashes' if s['files'] > 1 else ''}: `{s['sha256']}`",
            f"- published: {s['files']} file{'s'[: s['files'] > 1]}, {s['bytes']:,} bytes",
            "",
        ]
    names = list(per_source)
    lines += ["## What cleaning did", "", *_row("", *names, "all"), *_row(*["---"] * (len(names) + 2))]
    every = [*(per_source[n] for n in names), documents]
    lines += _row("documents read", *(a["in"] for a in every))
    for reason in documents["dropped"]:
        lines += _row(f"dropped: {reason}", *(a["dropped"][reason] for a in every))
    lines += _row("**kept**", *(a["kept"] for a in every))
    lines += _row(
        "bytes of text kept", *(per_source[n]["bytes"] for n in names), sum(per_source[n]["bytes"] for n in names)
    )
    for what in documents["repaired"]:
        lines += _row(f"mended: {what}", *(a["repaired"].get(what, 0) for a in every))
    lines += _row(
        "quarantined (unreadable records)",
        *(per_source[n]["quarantined"] for n in names),
        report["records"]["quarantined"],
    )
    lines += ["", "## Splits", "", *_row("split", "documents", "bytes"), *_row("---", "---", "---")]
    for split, amount in report["splits"].items():
        lines += _row(split, amount["documents"], amount["bytes"])
    lines += [
        "",
        "A document's split is drawn by the hash of its text. Examples of what was dropped are in `rejected.jsonl`.",
        "",
    ]
    return "\n".join(lines)


def _row(*cells: str | int) -> list[str]:
    return ["| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c).replace("|", "\\|") for c in cells) + " |"]
