"""Adapters: merge."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, cast

from foundry.commands.arguments import NewPath, Subparsers, TypedPath, add_command
from foundry.config import ConfigError

if TYPE_CHECKING:
    from foundry.models import MiniLLM


def merge(args: argparse.Namespace) -> None:
    out = Path(args.out)
    if out.exists():
        raise ConfigError(f"{out} exists: name a new folder with --out")
    from foundry.models import save_model
    from foundry.models.adapter import merged
    from foundry.models.adapter_files import load_adapted

    adapted, record, _ = load_adapted(args.adapter, args.base)
    if args.adapter_gguf:
        from foundry.export.gguf_adapter import export_gguf_adapter

        export_gguf_adapter(adapted, args.adapter_gguf, Path(args.adapter).name)
        print(f"wrote {args.adapter_gguf}: the adapter for llama.cpp, beside the GGUF file of {args.base}")
    save_model(out, cast("MiniLLM", merged(adapted)), record.facts)
    print(f"wrote {out}: {args.base} with {args.adapter} merged, in float32")


def add_to(subparsers: Subparsers) -> None:
    text = "merge an adapter into the model that it was trained on; any other model is refused"
    s = add_command(subparsers, "merge", merge, text, params=False)
    s.add_argument("adapter", action=TypedPath, metavar="ADAPTER", help="folder of the adapter")
    default = "artifacts/model"
    help_text = "folder of the model that it was trained on (default: %(default)s)"
    s.add_argument("--base", action=TypedPath, metavar="FOLDER", default=default, help=help_text)
    s.add_argument(
        "--adapter-gguf",
        action=NewPath,
        metavar="FILE",
        help="also write the adapter by itself, for llama.cpp's --lora; one with trained rows is refused",
    )
    s.add_argument("--out", action=NewPath, metavar="FOLDER", required=True, help="new folder of the merged model")
