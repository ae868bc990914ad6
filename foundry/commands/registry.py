"""Registering, delivering, checking what was exported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from foundry.config import load_config
from foundry.utils.files import state_dir


def register(args: argparse.Namespace) -> None:
    from foundry.registering import register_export

    done = register_export(load_config(args.params))
    print(f"version {done.version} of {done.name}: {'new' if done.created else 'was registered before'}; {done.reason}")


def sync(args: argparse.Namespace) -> None:
    from foundry.tracking import sync as deliver

    deliver(state_dir(), uri=args.uri)


def verify(args: argparse.Namespace) -> None:
    from foundry.export import verify_export

    verify_export(Path(args.folder))
    print(f"{args.folder}: every file is as it was exported")


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    add(
        "register",
        register,
        "register artifacts/export in MLflow; the same content never makes a second version",
        params=True,
    )
    s = add("sync", sync, "deliver metrics that could not reach MLflow while training, and close dead runs")
    s.add_argument("--uri", default=None, help="deliver to this address instead of the one of each run")
    s = add("verify", verify, "check every file of an export against its recorded hash")
    s.add_argument("folder", nargs="?", default="artifacts/export", help="default: %(default)s")
