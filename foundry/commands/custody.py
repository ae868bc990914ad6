"""The chain from a model to the bytes that it came from: trace, verify, reproduce."""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.arguments import Subparsers, TypedPath, add_command, add_json
from foundry.config import ConfigError, DataError, load_params

if TYPE_CHECKING:
    from foundry.project.verify import CheckedFile


def trace(args: argparse.Namespace) -> None:
    from foundry.project.trace import trace as trace_export

    found = trace_export(args.where, load_params(args.params))
    print(json.dumps(found.to_dict()) if args.json else "\n".join(found.lines()))


def verify(args: argparse.Namespace) -> None:
    from foundry.project.trace import fetch_registered
    from foundry.project.verify import verify as check

    if args.repair:
        _repair(args.where)
    if not args.where.startswith("models:/"):
        return _report(args.where, check(args.where))
    if args.repair:
        raise ConfigError("--repair is for a folder of the project; a registered version is restored from a backup")
    with tempfile.TemporaryDirectory(prefix="foundry-verify-") as tmp:
        found = fetch_registered(args.where, load_params(args.params), Path(tmp))
        print(f"{found.name}: its files are those that were registered")
        _report(args.where, [f for f in check(found.export) if f.link == "export"])


def _report(where: str, found: list[CheckedFile]) -> None:
    for link in dict.fromkeys(f.link for f in found):
        states = Counter(f.state for f in found if f.link == link)
        print(f"{link:10} " + ", ".join(f"{n} {state}" for state, n in states.items()))
    for f in (f for f in found if f.state == "missing" and not f.broken):
        if f.link == "record":
            unnoticed = "a proof that was written again would not be noticed"
            print(f"  no dvc.lock here records this export, so that {unnoticed}: {f.path}")
        else:
            print(f"  not on this disk: {f.path}")
    if broken := [f for f in found if f.broken]:
        listed = "".join(f"\n  - {f.link}: {f.path}: {f.state}" for f in broken)
        raise DataError(
            f"the chain is broken:{listed}\n"
            "`foundry verify --repair` restores these files from DVC's cache or from git, removes damaged objects of "
            "the cache, and lists the stages that have to run again"
        )
    print(f"{where}: every file that is here is what was recorded")


def _repair(where: str) -> None:
    from foundry.project.verify import repair

    done = repair(where)
    for name in done.restored:
        print(f"restored {name}")
    for name in done.discarded:
        print(f"removed from DVC's cache, where it was damaged: {name}")
    if done.left:
        listed = "".join(f"\n  - {f.path}: {f.state}" for f in done.left)
        raise DataError(
            "these files are for you to judge: no record has their bytes, or no record lists them. "
            f"Remove or restore them:{listed}"
        )
    if done.stale:
        listed = "".join(f"\n  - {name}" for name in done.stale)
        raise DataError(f"these files are complete, but newer than the export: run `dvc repro`{listed}")
    if done.rebuild:
        listed = "".join(f"\n  - {name}" for names in done.rebuild.values() for name in names)
        raise DataError(
            f"neither DVC's cache nor git has the recorded bytes of these files, which were removed:{listed}\n"
            f"`dvc pull {' '.join(done.rebuild)}` fetches them if a remote has them; "
            f"`dvc repro {' '.join(done.rebuild)}` builds them again"
        )


def reproduce(args: argparse.Namespace) -> None:
    from foundry.project.reproduce import reproduce as rebuild

    print("rebuilding in a temporary clone; this takes as long as the pipeline does")
    differ = rebuild(args.where, load_params(args.params), commit=args.commit)
    if differ:
        listed = "".join(f"\n  - {link}" for link in differ)
        raise DataError(f"rebuilt with other bytes; the first link that differs explains the others:{listed}")
    print(f"{args.where}: rebuilt, every link has the same bytes")


def add_to(subparsers: Subparsers) -> None:
    def add(name: str, call: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        s = add_command(subparsers, name, call, text)
        where = "an exported folder, or models:/NAME@ALIAS (default: %(default)s)"
        s.add_argument("where", action=TypedPath, nargs="?", default="artifacts/export", help=where)
        return s

    add_json(add("trace", trace, "print the chain from a model to the raw bytes, the commit and the parameters"))
    s = add("verify", verify, "hash again every file of an export and of its chain that is on this disk")
    restored = "restore damaged files from DVC's cache or git, remove damaged objects of the cache"
    s.add_argument("--repair", action="store_true", help=f"{restored}, and list what must be built again")
    text = "rebuild an export from its recorded commit in a temporary clone and compare every hash"
    s = add("reproduce", reproduce, text)
    s.add_argument("--commit", help="build this commit instead of the recorded one")
