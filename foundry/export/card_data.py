"""The model card's account of the texts: sources, sizes, what was dropped and why, and the terms that follow."""

from __future__ import annotations

from typing import Any

from foundry.export.licence import UNKNOWN, one_licence
from foundry.utils.markdown import code, inline, table


def data(cleaning: dict[str, Any]) -> list[str]:
    """Sources, and from a whole `reports/clean.json` sizes and drops.

    Args:
        cleaning: `sources`, and as far as they are there `per_source`, `splits` and `documents`.
    """
    rows = [
        [
            s["name"],
            code(s["url"]),
            s["lang"],
            inline(s["license"]),
            inline(s["attribution"]) or "none given",
            code(s["sha256"]),
        ]
        for s in cleaning["sources"]
    ]
    lines = ["## Data", "", *table(["source", "address", "language", "licence", "attribution", "sha256"], rows)]
    if per_source := cleaning.get("per_source"):
        sizes = [
            [name, f"{p['in']:,}", f"{p['kept']:,}", f"{p['bytes']:,}", _reasons(p["dropped"])]
            for name, p in per_source.items()
        ]
        lines += ["", *table(["source", "documents", "kept", "bytes kept", "dropped, by reason"], sizes)]
    if splits := cleaning.get("splits"):
        told = [[name, f"{s['documents']:,}", f"{s['bytes']:,}"] for name, s in splits.items()]
        lines += ["", *table(["split", "documents", "bytes"], told)]
    if documents := cleaning.get("documents"):
        repaired = {k: n for k, n in documents.get("repaired", {}).items() if n}
        if repaired:
            lines += ["", f"Repaired and kept: {_reasons(repaired)}."]
    if quarantined := cleaning.get("records", {}).get("quarantined"):
        lines += ["", f"Unreadable records, set aside: {quarantined:,}."]
    return lines


def _reasons(counts: dict[str, int]) -> str:
    told = [f"{reason.replace('_', ' ')} {n:,}" for reason, n in counts.items() if n]
    return ", ".join(told) or "none"


def terms(sources: list[dict[str, Any]]) -> list[str]:
    """What the licences of the texts ask of whoever shares the model."""
    licences = sorted({s["license"] for s in sources})
    lines = [
        "## Licence",
        "",
        f"Licences of the texts: {', '.join(map(inline, licences))}. Whoever shares this model names the sources above.",
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
