"""Text from the trained model."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.project import TypedPath
from foundry.config import load_config

if TYPE_CHECKING:
    from foundry.models import MiniLLM
    from foundry.tokenizers import Tokenizer


def generate(args: argparse.Namespace) -> None:
    from foundry.inference import Generator
    from foundry.inference.conversation import converse
    from foundry.utils.device import get_device

    device = get_device(args.device or _device_of(args.params))
    generator = Generator(*_model(Path(args.model), args.tokenizer), device)
    if args.prompt is None:
        converse(generator)
        return
    options = {k: getattr(args, k) for k in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    pieces = generator.stream(
        prompt=args.prompt, **options
    )  # checks everything, so that an error comes before any text
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _device_of(params: str) -> str:
    """`runtime.device` of the project; `auto` outside of one, where only --model matters."""
    return load_config(params).runtime.device if os.path.exists(params) else "auto"


def _model(folder: Path, tokenizer: str) -> tuple[MiniLLM, Tokenizer]:
    """A trained model, or an export, which has its own tokenizer."""
    from foundry.models import load_model
    from foundry.tokenizers import Tokenizer

    for hf in (folder, folder / "hf"):
        if os.path.isfile(hf / "tokenizer.model"):  # False for a name that no file can have, where Path.is_file raises
            from foundry.export.huggingface import import_huggingface

            return import_huggingface(hf)
    return load_model(folder)[0], Tokenizer(tokenizer)


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    s = add(
        "generate",
        generate,
        "continue a prompt with the trained model, or talk to it when no prompt is given",
        params=True,
    )
    s.add_argument("prompt", nargs="?", help="the text to continue")
    s.add_argument(
        "--model",
        action=TypedPath,
        default="artifacts/model",
        help="folder of a trained model or of an export (default: %(default)s)",
    )
    s.add_argument(
        "--tokenizer",
        action=TypedPath,
        default="artifacts/tokenizer",
        help="its tokenizer, which an export has itself (default: %(default)s)",
    )
    s.add_argument("--device", help="auto, cpu, cuda or mps (default: runtime.device of params.yaml)")
    s.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    s.add_argument("--temperature", type=float, default=0.8, help="0 = greedy (default: %(default)s)")
    s.add_argument("--top-k", type=int, default=0, help="0 = off (default)")
    s.add_argument("--top-p", type=float, default=0.95, help="1 = off (default: %(default)s)")
    s.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
