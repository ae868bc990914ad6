"""The model registry: register, promote, rollback, backup, sync."""

from __future__ import annotations

import argparse
from pathlib import Path

from foundry.commands.arguments import NewPath, Subparsers, add_command
from foundry.config import ConfigError, load_params
from foundry.config.pipelines import EXPORTS
from foundry.utils.files import state_dir

MODEL = "name of the registered model, for example foundry-chat (default: that of export.model_name)"


def register(args: argparse.Namespace) -> None:
    from foundry.project.register import register_export

    done = register_export(load_params(args.params), export=args.export)
    print(f"version {done.version} of {done.name}: {'new' if done.created else 'was registered before'}; {done.reason}")


def promote(args: argparse.Namespace) -> None:
    from foundry.project.register import promote as decide

    if args.force != bool(args.why):
        raise ConfigError('--force needs --why "…", and --why needs --force: a decision against the gate has a reason')
    done = decide(load_params(args.params), args.which, args.why, args.model)
    print(f"{args.which} {'is champion' if done.champion else 'is not promoted'}: {done.reason}")


def rollback(args: argparse.Namespace) -> None:
    from foundry.project.register import rollback as back

    done = back(load_params(args.params), args.why, args.model)
    print(f"champion is version {done.after} again (before: version {done.before})")


def sync(args: argparse.Namespace) -> None:
    from foundry.project.register import deliver_registrations, described
    from foundry.tracking import sync as deliver
    from foundry.tracking.address import resolve

    if args.uri is not None:
        resolve(args.uri)  # an address that can never work is refused even if there is nothing to deliver
    try:
        deliver(state_dir(), uri=args.uri)
    finally:  # models are registered even if the address of a run no longer exists
        for done in deliver_registrations(load_params(args.params)):
            print(described(done))


def backup(args: argparse.Namespace) -> None:
    from foundry.tracking import tracking_uri
    from foundry.tracking.backup import backup as copy

    done = copy(tracking_uri(load_params(args.params).runtime), Path(args.folder))
    print(f"{done.versions} versions of {done.models} models in {args.folder}, {done.copied} of them copied now")


def add_to(subparsers: Subparsers) -> None:
    text = "register an export in MLflow; the same content never makes a second version"
    s = add_command(subparsers, "register", register, text)
    kinds = "the base model's export, the chat model's, or the aligned one's (default: %(default)s)"
    s.add_argument("export", nargs="?", default=EXPORTS[0], choices=EXPORTS, help=kinds)
    text = "decide by the gate whether a version becomes champion, or force it"
    s = add_command(subparsers, "promote", promote, text)
    s.add_argument("which", nargs="?", default="challenger", help="a version or an alias (default: %(default)s)")
    s.add_argument("--force", action="store_true", help="promote against the gate; who did it and why are recorded")
    s.add_argument("--why", help="the reason; required with --force")
    s.add_argument("--model", help=MODEL)
    s = add_command(subparsers, "rollback", rollback, "return the alias champion to the previous version")
    s.add_argument("--why", default="no reason given", help="recorded with the version that was champion")
    s.add_argument("--model", help=MODEL)
    s = add_command(subparsers, "backup", backup, "copy registered models, their tags and runs to a folder")
    s.add_argument("folder", action=NewPath, help="what this folder contains already is not copied again")
    text = "deliver what could not reach MLflow, metrics and registrations, and close dead runs"
    s = add_command(subparsers, "sync", sync, text)
    s.add_argument("--uri", default=None, help="deliver metrics to this address instead of the address of each run")
