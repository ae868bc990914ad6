"""The chain of custody: trace, verify, reproduce."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.project import TypedPath
from foundry.config import ConfigError, DataError, load_config

if TYPE_CHECKING:
    from foundry.project.verify import Link

WHERE = "an exported folder, or models:/NAME@ALIAS (default: %(default)s)"


def trace(args: argparse.Namespace) -> None:
    from foundry.project.trace import lines
    from foundry.project.trace import trace as chain_of

    chain = chain_of(args.where, load_config(args.params))
    print(json.dumps(chain) if args.json else "\n".join(lines(chain)))


def verify(args: argparse.Namespace) -> None:
    from foundry.project.trace import registered
    from foundry.project.verify import verify as check

    if args.repair:
        _repair(args.where)
    if not args.where.startswith("models:/"):
        return _report(args.where, check(args.where))
    if args.repair:
        raise ConfigError("--repair is for a folder of the project; a registered version is restored from a backup")
    with tempfile.TemporaryDirectory(prefix="foundry-verify-") as tmp:
        found = registered(args.where, load_config(args.params), Path(tmp))
        print(f"{found.name}: its files are those that were registered")
        _report(args.where, [f for f in check(found.export) if f.link == "export"])


def _report(where: str, found: list[Link]) -> None:
    for link in dict.fromkeys(f.link for f in found):
        states = Counter(f.state for f in found if f.link == link)
        print(f"{link:10} " + ", ".join(f"{n} {state}" for state, n in states.items()))
    for f in (f for f in found if f.state == "missing" and not f.broken):
        if f.link == "record":
            print(
                f"  no dvc.lock here records this export, so that a proof which was written again would not be noticed: {f.path}"
            )
        else:
            print(f"  not on this disk: {f.path}")
    if broken := [f for f in found if f.broken]:
        listed = "".join(f"\n  - {f.link}: {f.path}: {f.state}" for f in broken)
        raise DataError(
            f"the chain is broken:{listed}\n`foundry verify --repair` restores these files from DVC's cache or from git, "
            "removes damaged objects of the cache, and names the stages that have to run again"
        )
    print(f"{where}: every file that is here is what was recorded")


def _repair(where: str) -> None:
    from foundry.project.verify import repair

    done = repair(where)
    for name in done.restored:
        print(f"restored {name}")
    for name in done.discarded:
        print(f"removed from DVC's cache, which it had damaged: {name}")
    if done.left:
        listed = "".join(f"\n  - {f.path}: {f.state}" for f in done.left)
        raise DataError(
            f"these are for you to judge: no record has them, or they are too many. Remove or restore them:{listed}"
        )
    if done.stale:
        listed = "".join(f"\n  - {name}" for name in done.stale)
        raise DataError(f"these files are whole, but newer than the export: run `dvc repro`{listed}")
    if done.rebuild:
        listed = "".join(f"\n  - {name}" for names in done.rebuild.values() for name in names)
        raise DataError(
            f"neither DVC's cache nor git has the recorded bytes of these files, which were removed:{listed}\n"
            f"`dvc pull` fetches them if a remote has them; `dvc repro {' '.join(done.rebuild)}` builds them again"
        )


def reproduce(args: argparse.Namespace) -> None:
    from foundry.project.reproduce import reproduce as rebuild

    print("building it again in a temporary clone; this takes as long as the pipeline does")
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
    s.add_argument("where", action=TypedPath, nargs="?", default="artifacts/export", help=WHERE)
    s.add_argument("--json", action="store_true", help="as one line of JSON")
    s = add("verify", verify, "hash again every file of an export and of its chain that is on this disk", params=True)
    s.add_argument("where", action=TypedPath, nargs="?", default="artifacts/export", help=WHERE)
    s.add_argument(
        "--repair", action="store_true",
        help="restore damaged files from DVC's cache or git, remove damaged objects of the cache, name what must be built again",
    )  # fmt: skip
    s = add(
        "reproduce",
        reproduce,
        "rebuild an export from its recorded commit in a temporary clone and compare every hash",
        params=True,
    )
    s.add_argument("where", action=TypedPath, nargs="?", default="artifacts/export", help=WHERE)
    s.add_argument("--commit", help="instead of the recorded one")
