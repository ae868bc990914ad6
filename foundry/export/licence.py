"""The terms under which the weights may be shared, where all sources are under the same licence."""

from __future__ import annotations

from foundry.utils.cleaning_report import CleanedSource

UNKNOWN = "unknown"
# Licences of texts that the hub's `license` field has a name for; every other one is `other` with its name beside it.
_HUB_NAMES = """
    apache-2.0 bsd-2-clause bsd-3-clause cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-4.0 cc-by-nc-nd-4.0
    cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 gfdl gpl-3.0 mit odbl odc-by pddl
    unlicense wtfpl
"""
HUB_NAMES = frozenset(_HUB_NAMES.split())


def one_licence(sources: list[CleanedSource]) -> str | None:
    """The licence of all sources, as they spell it; None if they differ or one is not known."""
    licences = {s.license for s in sources}
    return next(iter(licences)) if len(licences) == 1 and UNKNOWN not in licences else None


def licence_notice(name: str, sources: list[CleanedSource]) -> str | None:
    """The text of LICENSE: what the sources require and whom to name; None if they are not under one licence."""
    licence = one_licence(sources)
    if licence is None:
        return None
    licence = _one_line(licence)
    lines = [
        f"The weights of {name} were trained on texts under one licence, {licence}, and are shared under the same.",
        "",
        "Name these sources wherever you share the weights:",
        "",
        *(f"- {s.name} ({_one_line(s.url)}): {_one_line(s.attribution or 'no attribution given')}" for s in sources),
        "",
        f"This notice is not the licence; its full text is published under the identifier {licence}.",
    ]
    return "\n".join(lines) + "\n"


def _one_line(text: str) -> str:
    return " ".join(text.split())
