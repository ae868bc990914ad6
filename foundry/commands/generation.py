"""Text from a model: generate."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from foundry.commands.arguments import Subparsers, TypedPath, add_command
from foundry.config import load_params


def generate(args: argparse.Namespace) -> None:
    from foundry.inference import Generator
    from foundry.inference.conversation import converse
    from foundry.project.models import load_model_and_tokenizer
    from foundry.utils.device import get_device

    # Outside of a project only --model matters.
    device = args.device or (load_params(args.params).runtime.device if os.path.exists(args.params) else "auto")
    placed = get_device(device)
    generator = Generator(*load_model_and_tokenizer(Path(args.model), args.tokenizer), placed)
    if args.prompt is None:
        converse(generator)
        return
    options = {k: getattr(args, k) for k in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    pieces = generator.stream(prompt=args.prompt, **options)  # checks everything: an error comes before any text
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def add_to(subparsers: Subparsers) -> None:
    text = "continue a prompt with the trained model, or talk to it when no prompt is given"
    s = add_command(subparsers, "generate", generate, text)
    s.add_argument("prompt", nargs="?", help="the text to continue")
    text = "folder of a trained model or of an export (default: %(default)s)"
    s.add_argument("--model", action=TypedPath, default="artifacts/model", help=text)
    text = "the tokenizer of a trained model; an export contains its own (default: %(default)s)"
    s.add_argument("--tokenizer", action=TypedPath, default="artifacts/tokenizer", help=text)
    s.add_argument("--device", help="auto, cpu, cuda or mps (default: runtime.device of params.yaml)")
    s.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    s.add_argument("--temperature", type=float, default=0.8, help="0 = greedy (default: %(default)s)")
    s.add_argument("--top-k", type=int, default=0, help="0 = off (default)")
    s.add_argument("--top-p", type=float, default=0.95, help="1 = off (default: %(default)s)")
    s.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
