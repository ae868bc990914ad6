"""Publishing an export: push."""

from __future__ import annotations

import argparse
from pathlib import Path

from foundry.commands.arguments import Subparsers, TypedPath, add_command


def push(args: argparse.Namespace) -> None:
    from foundry.export import push as upload

    print(f"pushed {args.folder} to {upload(Path(args.folder), args.repo, args.private)}")


def add_to(subparsers: Subparsers) -> None:
    text = "upload a proved export to a hub; the token is read from HF_TOKEN"
    s = add_command(subparsers, "push", push, text, params=False)
    s.add_argument("repo", metavar="REPO", help="OWNER/NAME; created if it does not exist")
    s.add_argument("--private", action="store_true", help="make the repository private, if it is created now")
    s.add_argument("--folder", action=TypedPath, default="artifacts/export", help="default: %(default)s")
