"""Text from the trained model."""

from __future__ import annotations

import argparse
from collections.abc import Callable

from foundry.config import ConfigError


def generate(args: argparse.Namespace) -> None:
    from foundry.inference import Generator
    from foundry.models import load_model
    from foundry.tokenizers import Tokenizer

    model, _ = load_model(args.model)
    generator = Generator(model, Tokenizer(args.tokenizer), args.device)
    if args.prompt is None:
        generator.interactive_generate()
        return
    options = {k: getattr(args, k) for k in ("max_new_tokens", "temperature", "top_k", "top_p", "seed")}
    try:
        print(args.prompt, end="", flush=True)
        for piece in generator.stream(prompt=args.prompt, **options):
            print(piece, end="", flush=True)
        print()
    except ValueError as e:
        raise ConfigError(str(e)) from None


def add_to(add: Callable[..., argparse.ArgumentParser]) -> None:
    s = add("generate", generate, "continue a prompt with the trained model, or talk to it when no prompt is given")
    s.add_argument("prompt", nargs="?", help="the text to continue")
    s.add_argument("--model", default="artifacts/model", help="folder of the trained model (default: %(default)s)")
    s.add_argument("--tokenizer", default="artifacts/tokenizer", help="its tokenizer (default: %(default)s)")
    s.add_argument("--device", default="auto", help="auto, cpu, cuda or mps")
    s.add_argument("--max-new-tokens", type=int, default=120, help="default: %(default)s")
    s.add_argument("--temperature", type=float, default=0.8, help="0 = greedy (default: %(default)s)")
    s.add_argument("--top-k", type=int, default=0, help="0 = off (default)")
    s.add_argument("--top-p", type=float, default=0.95, help="1 = off (default: %(default)s)")
    s.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
