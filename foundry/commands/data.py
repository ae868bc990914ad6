"""Corpora: relock, data list, data get."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.arguments import NewPath, Subparsers, add_command, add_json
from foundry.config import ConfigError, load_params

if TYPE_CHECKING:
    from foundry.data.fetch.presets import Preset

SETS = Path("data/sets")


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


def list_presets(args: argparse.Namespace) -> None:
    from foundry.data.fetch.presets import read_presets

    presets = read_presets()
    if args.json:
        print(json.dumps([_facts(p) for p in presets], ensure_ascii=False))
        return
    for p in presets:
        print(f"{p.name:15} {_size(p):>13}  {', '.join(p.languages):5} {', '.join(p.licences):17} {p.title}")
        for s in p.sources:
            print(f"{'':15} {s.url}")
            print(f"{'':15} {_hash(p, s.sha256)}")
    print("`foundry data get NAME` downloads one; its sections for params.yaml are in presets/NAME.yaml")


def _size(preset: Preset) -> str:
    if preset.bytes is None:
        return "your file" if preset.local else "size unknown"
    megabytes = preset.bytes / 1e6
    return f"{megabytes:,.2f} MB" if preset.measured else f"about {megabytes:,.0f} MB"


def _hash(preset: Preset, sha256: str | None) -> str:
    if preset.local:
        return "DVC tracks the bytes of your file"
    return f"sha256 {sha256}" if sha256 else "its hashes are recorded in data.lock.json at the first download"


def _facts(preset: Preset) -> dict[str, object]:
    return {
        "name": preset.name,
        "title": preset.title,
        "bytes": preset.bytes,
        "measured": preset.measured,
        "sources": [
            {key: getattr(s, key) for key in ("name", "url", "sha256", "lang", "license", "attribution")}
            for s in preset.sources
        ],
    }


def get(args: argparse.Namespace) -> None:
    import difflib

    from foundry.data.fetch.presets import get_preset, read_presets
    from foundry.utils.log import get_logger

    presets = {p.name: p for p in read_presets()}
    if args.name not in presets:
        near = difflib.get_close_matches(args.name, presets, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"there is no preset {args.name!r}: {hint}known are {', '.join(presets)}")
    preset, out = presets[args.name], Path(args.out or SETS / args.name)
    manifest = get_preset(preset, out, get_logger())
    for f in (f for s in manifest.sources for f in s.files):
        print(f"  {out / f.path}: {f.bytes:,} bytes, sha256 {f.sha256}")
    print(f"licence: {', '.join(preset.licences)}; read it before you train")
    print(
        f"to train on it, copy the sections of {preset.path} into params.yaml; in this project nothing is transferred "
        "again"
    )


def add_to(subparsers: Subparsers) -> None:
    text = "forget the recorded hashes of sources: the next download accepts what the publisher has"
    s = add_command(subparsers, "relock", relock, text)
    s.add_argument("names", nargs="+", metavar="NAME", help="names of sources in params.yaml")
    text = "list the corpora that are ready to download, or download one"
    data = subparsers.add_parser("data", help=text, description=f"{text[0].upper()}{text[1:]}.")
    actions = data.add_subparsers(required=True, metavar="ACTION")
    text = "list the presets: size, language, licence, address and hash"
    add_json(add_command(actions, "list", list_presets, text, params=False))
    text = "download the files of a preset, each checked by its hash, with a manifest"
    s = add_command(actions, "get", get, text, params=False)
    s.add_argument("name", metavar="NAME", help="of a preset, as `foundry data list` shows it")
    s.add_argument("--out", action=NewPath, metavar="FOLDER", help=f"new folder (default: {SETS}/NAME)")
