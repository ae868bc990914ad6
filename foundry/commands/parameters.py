"""The parameter file: check, profile."""

from __future__ import annotations

import argparse

from foundry.commands.arguments import Subparsers, add_command
from foundry.config import describe, load_params, profiles
from foundry.utils.dvc_files import repair_dvc
from foundry.utils.files import project_dir, write_text


def check(args: argparse.Namespace) -> None:
    if args.describe:
        for parameter in describe():
            print(f"{parameter.key}\n    {parameter.description}\n    default: {parameter.default}")
        return
    from foundry.project.check import checked

    for line in repair_dvc():  # first: DVC's files are repaired even if the parameters are wrong
        print(line)
    found = checked(load_params(args.params), project_dir(), args.params)
    print(f"{args.params}: every key is known and every value fits")
    for line in found.lines():
        print(line)


def profile(args: argparse.Namespace) -> None:
    if args.name is None:
        for name in profiles.profile_names():
            active = not profiles.changes(args.params, name)
            print(f"{name}{'   (active)' if active else ''}")
        return
    rows = profiles.changes(args.params, args.name)
    if not rows:
        print(f"profile {args.name} is active already")
        return
    text = profiles.switch(args.params, args.name)
    for row in rows:
        print(f"  {row.key}: {row.old} → {row.new}")
    stale = profiles.stages_to_rerun([row.key for row in rows])
    print(f"`dvc repro` will rerun: {', '.join(stale)} (or restore them, if they ran with these values before)")
    if args.dry_run:
        print("nothing was written (--dry-run)")
        return
    write_text(args.params, text)
    print(f"wrote {args.params}: profile {args.name}")


def add_to(subparsers: Subparsers) -> None:
    text = "check params.yaml, reporting every problem before any work; repair DVC's lock file after a kill"
    s = add_command(subparsers, "check", check, text)
    s.add_argument("--describe", action="store_true", help="explain every key instead")
    text = "list the profiles, or switch params.yaml to one and list the stages that will rerun"
    s = add_command(subparsers, "profile", profile, text)
    s.add_argument("name", nargs="?", help="smoke, laptop, gpu-124m or gpu-1b; without it the profiles are listed")
    s.add_argument("--dry-run", action="store_true", help="print what would change and write nothing")
