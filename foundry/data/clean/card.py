"""The data card: what the corpus is, whom to thank, and what cleaning did to it. A function of `clean.json` only."""

from __future__ import annotations

from pathlib import Path

from foundry.utils.cleaning_report import CleaningReport
from foundry.utils.files import write_text
from foundry.utils.markdown import code, inline


def write_card(path: Path, report: CleaningReport) -> None:
    write_text(path, card(report))


def card(report: CleaningReport) -> str:
    """The card in Markdown."""
    documents, of_sources = report.documents, list(report.per_source.values())
    lines = ["# Data card", "", "## Sources", ""]
    for s in report.sources:
        lines += [
            f"### {s.name}",
            "",
            f"- address: {code(s.url)}" + (f", member {code(s.member)}" if s.member else ""),
            f"- language: {s.lang}",
            f"- licence: {inline(s.license)}",
            f"- attribution: {inline(s.attribution) or 'none given'}",
            f"- sha256{' of the list of files and their hashes' if s.files > 1 else ''}: `{s.sha256}`",
            f"- published: {s.files} file{'s'[: s.files > 1]}, {s.bytes:,} bytes",
            "",
        ]
    lines += ["## What cleaning did", "", *_row("", *report.per_source, "all"), *_row(*["---"] * (len(of_sources) + 2))]
    every = [*of_sources, documents]
    lines += _row("documents read", *(a.incoming for a in every))
    for reason in documents.dropped:
        lines += _row(f"dropped: {reason}", *(a.dropped[reason] for a in every))
    lines += _row("**kept**", *(a.kept for a in every))
    kept_bytes = [a.bytes for a in of_sources]
    lines += _row("bytes of text kept", *kept_bytes, sum(kept_bytes))
    for kind in documents.repaired:
        lines += _row(f"repaired: {kind}", *(a.repaired.get(kind, 0) for a in every))
    quarantined = [a.quarantined for a in of_sources]
    lines += _row("quarantined (unreadable records)", *quarantined, report.records.quarantined)
    if any(a.fields for a in of_sources):
        lines += [
            "",
            "## Fields beside the text",
            "",
            *_row("source", "field", "documents"),
            *_row("---", "---", "---"),
        ]
        for source, account in report.per_source.items():
            for name, count in account.fields.items():
                lines += _row(source, name, count)
    lines += ["", "## Splits", "", *_row("split", "documents", "bytes"), *_row("---", "---", "---")]
    for split, size in report.splits.items():
        lines += _row(split, size.documents, size.bytes)
    lines += [
        "",
        "A document's split is drawn by the hash of its text. Examples of what was dropped are in `rejected.jsonl`.",
        "",
    ]
    return "\n".join(lines)


def _row(*cells: str | int) -> list[str]:
    return ["| " + " | ".join(f"{c:,}" if isinstance(c, int) else str(c).replace("|", "\\|") for c in cells) + " |"]
