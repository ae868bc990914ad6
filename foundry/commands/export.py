"""Handing an export on."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from foundry.commands.project import TypedPath


def push(args: argparse.Namespace) -> None:
    from foundry.export import push as upload

    print(f"pushed {args.folder} to {upload(Path(args.folder), args.repo, args.private)}")


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    s = add("push", push, "upload a proved export to a hub; the token is read from HF_TOKEN")
    s.add_argument("repo", metavar="REPO", help="OWNER/NAME; made if it is not there")
    s.add_argument("--private", action="store_true", help="make it private, if it is made now")
    s.add_argument("--folder", action=TypedPath, default="artifacts/export", help="default: %(default)s")
