"""Notes on other projects, true to their code: study add, check, update."""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.arguments import Subparsers, TypedPath, add_command
from foundry.config import ConfigError, DataError

if TYPE_CHECKING:
    from foundry.study.citations import Found


def add(args: argparse.Namespace) -> None:
    from foundry.study import notes

    for path in notes.add(Path("."), args.name, args.repository, args.licence, _pin(args)):
        print(f"wrote {path}")
    print(f"write the pages, then run `foundry study update {args.name} --source {args.source}`")


def check(args: argparse.Namespace) -> None:
    from foundry.study import notes

    if args.source and args.name is None:
        raise ConfigError("--source is the code of one project: give its name, too")
    if args.against and not args.source:
        raise ConfigError("--against compares two versions: give --source, too")
    names = notes.studies(Path(".")) if args.name is None else [args.name]
    if not names:
        raise ConfigError("there is no study here: `foundry study add` begins one")
    problems = []
    for name in names:
        found = notes.check(Path("."), name, args.source and Path(args.source), args.against)
        problems += [f"{name}: {p}" for p in found.problems]
        how = "resolved in the pinned code" if found.resolved else "compared with their record"
        print(f"{name}: {found.citations} citations {how}, {found.words} words, {len(found.problems)} problems")
        _print_drift(found.drift, args.against)
    if problems:
        raise DataError("the studies are not true:" + "".join(f"\n  - {p}" for p in problems))


def update(args: argparse.Namespace) -> None:
    from foundry.study import notes

    pin = _pin(args) if args.commit or args.archive else None
    found = notes.update(Path("."), args.name, Path(args.source), pin)
    _print_drift(found, args.commit or args.archive or "the pinned code")
    print(f"recorded {len(found)} citations of {args.name}")


def _print_drift(found: list[Found], version: str) -> None:
    if not found:
        return
    states = Counter(f.state for f in found)
    print(f"  in {version}: " + ", ".join(f"{n} {state}" for state, n in sorted(states.items())))
    for f in found:
        if f.state != "same":
            what = {"moved": "now at", "changed": "the lines changed, read them again:", "gone": "gone:"}[f.state]
            print(f'  {what} {f.citation.place} "{f.citation.quote}"' + (f": {f.why}" if f.why else ""))


def _pin(args: argparse.Namespace) -> dict[str, str]:
    from foundry.study.source import pin_commit, pin_sdist

    if args.archive and args.commit:
        raise ConfigError("a source is a commit or an archive: give --commit or --archive")
    if args.archive:
        return pin_sdist(Path(args.archive), Path(args.source), args.folder)
    return pin_commit(Path(args.source), args.commit or "HEAD")


def add_to(subparsers: Subparsers) -> None:
    text = "write and check notes on other projects, whose citations are compared with the code that they quote"
    group = subparsers.add_parser("study", help=text, description=text[0].upper() + text[1:] + ".")
    actions = group.add_subparsers(required=True, metavar="ACTION")
    source = "a clone of its repository, or the folder of its unpacked source archive"

    s = add_command(actions, "add", add, "pin the code of a project and begin its pages in study/NAME", params=False)
    s.add_argument("name", help="name of the study: small letters, digits, - _ .")
    s.add_argument("--repository", required=True, metavar="OWNER/NAME", help="where the project is developed")
    s.add_argument("--licence", required=True, help="SPDX identifier of its licence, such as Apache-2.0")
    s.add_argument("--source", required=True, action=TypedPath, metavar="DIR", help=source)
    _add_pin(s, "commit to pin (default: HEAD of the clone)")

    text = "check the pages of studies against their record and, with --source, each citation against the code"
    s = add_command(actions, "check", check, text, params=False)
    s.add_argument("name", nargs="?", help="name of a study (default: all)")
    s.add_argument("--source", action=TypedPath, metavar="DIR", help=source)
    text = "a newer revision of the clone, or the folder of a newer archive: report which citations changed there"
    s.add_argument("--against", action=TypedPath, metavar="VERSION", help=text)

    text = (
        "record the hash of the lines of each citation; with --commit or --archive, move the pin and the line numbers"
    )
    s = add_command(actions, "update", update, text, params=False)
    s.add_argument("name", help="name of the study")
    s.add_argument("--source", required=True, action=TypedPath, metavar="DIR", help=source)
    _add_pin(s, "move the pin to this commit")


def _add_pin(parser: argparse.ArgumentParser, commit: str) -> None:
    parser.add_argument("--commit", help=commit)
    text = "the source archive that --source was unpacked from; its hash is recorded"
    parser.add_argument("--archive", action=TypedPath, metavar="FILE", help=text)
    text = "folder of the unpacked archive that the cited paths start from (default: its top)"
    parser.add_argument("--folder", default=".", help=text)
