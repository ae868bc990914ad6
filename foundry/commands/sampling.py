"""The options of the sampling parameters, which the commands that generate text share."""

from __future__ import annotations

import argparse

from foundry.config.sampling import PARAMETERS, Parameter, Sampling


def add_sampling(parser: argparse.ArgumentParser, begin: Sampling) -> None:
    """Adds an option for each parameter.

    Args:
        begin: what the command begins with, for the help.
    """
    group = parser.add_argument_group("sampling parameters", "docs/en/inference.md has their formulas.")
    for p in PARAMETERS:
        group.add_argument(f"--{p.name.replace('_', '-')}", metavar=_example(p), help=_explained(p, begin))


def given_sampling(args: argparse.Namespace) -> dict[str, str]:
    """The parameters that were given, as text."""
    return {p.name: text for p in PARAMETERS if (text := getattr(args, p.name)) is not None}


def _example(p: Parameter) -> str:
    """The form of a value."""
    return {"ids": "ID,ID", "words": "TEXT,TEXT", "bias": "ID=BIAS,ID=BIAS"}.get(p.kind, "VALUE")


def _explained(p: Parameter, begin: Sampling) -> str:
    default = getattr(begin, p.name)
    facts = [f"range {p.range}"] if p.range else []
    if default != p.off and p.off is not None:
        facts.append(f"off {p.off:g}")
    facts.append(f"default {default if default != () else 'none'}")
    return f"{p.text} ({'; '.join(facts)})".replace("%", "%%")
