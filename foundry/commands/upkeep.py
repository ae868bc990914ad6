"""What the project does now, what is wrong with it or its machine, and what can be removed: status, doctor, gc."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from foundry.commands.arguments import Subparsers, add_command, add_json
from foundry.config import ConfigError, load_params
from foundry.utils.files import project_dir


def status(args: argparse.Namespace) -> None:
    from foundry.project.status import status as look

    found = look()
    print(json.dumps(found.to_dict()) if args.json else "\n".join(found.lines()))


def doctor(args: argparse.Namespace) -> None:
    from foundry.project.doctor import examine

    found = examine(args.params, project_dir())
    print(
        json.dumps([f.to_dict() for f in found]) if args.json else "\n".join(line for f in found for line in f.lines())
    )
    if problems := [f.check for f in found if f.state == "problem"]:
        raise ConfigError(f"{len(problems)} of {len(found)} findings will make something fail: {', '.join(problems)}")


def gc(args: argparse.Namespace) -> None:
    from foundry.project.collect import Piece, collect, remove
    from foundry.project.status import mib

    if not 0 <= args.days <= 36_500:
        raise ConfigError(f"--days {args.days:g}: give 0 to 36500 days")
    found = collect(load_params(args.params), days=args.days)
    done = remove(Path("."), found.free) if args.yes else 0
    if args.json:
        print(json.dumps({**found.to_dict(), "removed_bytes": done}))
        return

    def show(title: str, pieces: list[Piece]) -> None:
        print(f"{title}: {mib(sum(p.bytes for p in pieces))} in {len(pieces)} places")
        for p in sorted(pieces, key=lambda p: -p.bytes):
            print(f"  {mib(p.bytes):>14}  {p.path}: {p.why}")

    show("kept", found.kept)
    show("removed" if args.yes else "would be removed", found.free)
    if found.free and not args.yes:
        print("nothing was removed; `foundry gc --yes` does it")
    dvc_gc = "dvc gc --workspace --all-branches --all-tags --all-experiments"
    print(f"DVC's cache is not included: `{dvc_gc}` lists what it would remove, and asks")
    print("what was deleted in MLflow is not included: `mlflow gc --backend-store-uri URI` frees it")


def add_to(subparsers: Subparsers) -> None:
    text = "print what runs and at which step, what waits and why, the addresses of the UI, the disk; needs no server"
    add_json(add_command(subparsers, "status", status, text, params=False))
    text = "check versions, device, compiler, disk, locks, DVC, MLflow, Prefect and a forward pass, and say what to do"
    add_json(add_command(subparsers, "doctor", doctor, text))
    text = "list what nothing refers to any more in .foundry/, and remove it with --yes"
    s = add_command(subparsers, "gc", gc, text)
    s.add_argument("--yes", action="store_true", help="remove it; without this option nothing is removed")
    text = "keep whatever is younger than this, referred to or not (default: %(default)s)"
    s.add_argument("--days", type=float, default=7.0, help=text)
    add_json(s)
