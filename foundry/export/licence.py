"""Under which terms the weights may be shared: said only where the sources say one thing."""

from __future__ import annotations

from typing import Any

UNKNOWN = "unknown"
# What the hub's `license` field knows of the licences that texts come under; every other one is `other` with a name.
HUB_NAMES = {
    "apache-2.0", "bsd-2-clause", "bsd-3-clause", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0", "cc-by-nd-4.0", "cc-by-sa-3.0",
    "cc-by-sa-4.0", "cc0-1.0", "gfdl", "gpl-3.0", "mit", "odbl", "odc-by", "pddl", "unlicense", "wtfpl",
}  # fmt: skip


def one_licence(sources: list[dict[str, Any]]) -> str | None:
    """The licence that all sources have, as they spell it; None where they differ or one is not known."""
    licences = {s["license"] for s in sources}
    return next(iter(licences)) if len(licences) == 1 and UNKNOWN not in licences else None


def licence_notice(name: str, sources: list[dict[str, Any]]) -> str | None:
    """The text of LICENSE: what the sources ask for and whom to name. None where they name no single licence."""
    licence = one_licence(sources)
    if licence is None:
        return None
    licence = " ".join(licence.split())
    lines = [
        f"The weights of {name} were trained on texts under one licence, {licence}, and are shared under the same.",
        "",
        "Name these sources wherever you share the weights:",
        "",
        *(
            f"- {s['name']} ({' '.join(s['url'].split())}): {' '.join((s['attribution'] or 'no attribution given').split())}"
            for s in sources
        ),
        "",
        f"This notice is not the licence; its full text is published under the identifier {licence}.",
    ]
    return "\n".join(lines) + "\n"
