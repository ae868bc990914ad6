"""The model card's account of the texts: sources, sizes, what was dropped and why, and the terms that follow."""

from __future__ import annotations

from foundry.export.licence import UNKNOWN, one_licence
from foundry.utils.cleaning_report import CleanedSource, CleaningReport
from foundry.utils.markdown import code, inline, table


def data_section(report: CleaningReport) -> list[str]:
    """Sources, sizes, and what was dropped or repaired."""
    sources = [
        [s.name, code(s.url), s.lang, inline(s.license), inline(s.attribution) or "none given", code(s.sha256)]
        for s in report.sources
    ]
    sizes = [
        [name, f"{s.incoming:,}", f"{s.kept:,}", f"{s.bytes:,}", _reasons(s.dropped)]
        for name, s in report.per_source.items()
    ]
    splits = [[name, f"{s.documents:,}", f"{s.bytes:,}"] for name, s in report.splits.items()]
    lines = [
        "## Data",
        "",
        *table(["source", "address", "language", "licence", "attribution", "sha256"], sources),
        "",
        *table(["source", "documents", "kept", "bytes kept", "dropped, by reason"], sizes),
        "",
        *table(["split", "documents", "bytes"], splits),
    ]
    if any(report.documents.repaired.values()):
        lines += ["", f"Repaired and kept: {_reasons(report.documents.repaired)}."]
    if quarantined := report.records.quarantined:
        lines += ["", f"Unreadable records, set aside: {quarantined:,}."]
    return lines


def _reasons(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason.replace('_', ' ')} {n:,}" for reason, n in counts.items() if n) or "none"


def terms_section(sources: list[CleanedSource]) -> list[str]:
    """What the licences of the texts require of whoever shares the model."""
    licences = sorted({s.license for s in sources})
    lines = [
        "## Licence",
        "",
        f"Licences of the texts: {', '.join(map(inline, licences))}. "
        "Whoever shares this model names the sources above.",
    ]
    if one_licence(sources):
        lines.append("`LICENSE` beside this file has the notice.")
    if share_alike := [x for x in licences if "-SA-" in x.upper()]:
        lines.append(
            f"The texts are under {', '.join(map(inline, share_alike))}, a share-alike licence. Whether weights adapt "
            "their training text is not settled; sharing them under the same licence is the safe reading."
        )
    if UNKNOWN in licences:
        lines.append("The licence of a source is not known: find out before you share the model.")
    return lines
