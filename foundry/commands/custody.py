"""The chain of custody: trace, verify, reproduce."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable

from foundry.config import DataError, load_config

WHERE = "an exported folder, or models:/NAME@ALIAS (default: %(default)s)"


def trace(args: argparse.Namespace) -> None:
    from foundry.custody import lines
    from foundry.custody import trace as chain_of

    chain = chain_of(args.where, load_config(args.params))
    print(json.dumps(chain) if args.json else "\n".join(lines(chain)))


def verify(args: argparse.Namespace) -> None:
    from foundry.custody import verify as check

    found = check(args.folder)
    for link in dict.fromkeys(f.link for f in found):
        states = Counter(f.state for f in found if f.link == link)
        print(f"{link:10} " + ", ".join(f"{n} {state}" for state, n in states.items()))
    broken = [f for f in found if f.state not in ("ok", "missing") or (f.link == "export" and f.state != "ok")]
    for f in (f for f in found if f.state == "missing" and f not in broken):
        print(f"  not on this disk: {f.path}")
    if broken:
        told = "\n  - ".join(f"{f.link}: {f.path}: {f.state}" for f in broken)
        raise DataError(
            f"the chain is broken:\n  - {told}\nRestore with `dvc checkout --force`, or rebuild with `dvc repro`"
        )
    print(f"{args.folder}: every file that is here is what was recorded")


def reproduce(args: argparse.Namespace) -> None:
    from foundry.custody import reproduce as rebuild

    print("building it anew in a temporary clone; this takes as long as the pipeline does")
    differ = rebuild(args.where, load_config(args.params), commit=args.commit)
    if differ:
        told = "\n  - ".join(differ)
        raise DataError(
            f"rebuilt, and not the same bytes; the first link that differs explains the others:\n  - {told}"
        )
    print(f"{args.where}: rebuilt, every link has the same bytes")


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    s = add(
        "trace", trace, "print the chain from a model down to the raw bytes, the commit and the parameters", params=True
    )
    s.add_argument("where", nargs="?", default="artifacts/export", help=WHERE)
    s.add_argument("--json", action="store_true", help="as one line of JSON")
    s = add("verify", verify, "hash again every file of an export and of its chain that is on this disk", params=True)
    s.add_argument("folder", nargs="?", default="artifacts/export", help="default: %(default)s")
    s = add(
        "reproduce",
        reproduce,
        "rebuild an export from its recorded commit in a temporary clone and compare every hash",
        params=True,
    )
    s.add_argument("where", nargs="?", default="artifacts/export", help=WHERE)
    s.add_argument("--commit", help="instead of the recorded one")
