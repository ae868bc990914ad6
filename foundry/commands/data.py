"""Downloaded data: relock."""

from __future__ import annotations

import argparse

from foundry.commands.arguments import Subparsers, add_command
from foundry.config import load_params


def relock(args: argparse.Namespace) -> None:
    from foundry.data.fetch import lockfile

    path = lockfile.lock_path()
    forgotten = lockfile.relock(load_params(args.params), args.names, path)
    for address in forgotten:
        print(f"  forgot {address}")
    if forgotten:
        print(f"wrote {path}; `dvc repro --force --single-item download` fetches these files and records their hashes")
    else:
        print(f"{path} has no record of {', '.join(args.names)}")


def add_to(subparsers: Subparsers) -> None:
    text = "forget the recorded hashes of sources: the next download accepts what the publisher has"
    s = add_command(subparsers, "relock", relock, text)
    s.add_argument("names", nargs="+", metavar="NAME", help="names of sources in params.yaml")
