"""Text from a model: generate."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from foundry.commands.arguments import Subparsers, TypedPath, add_command
from foundry.commands.sampling import add_sampling, given_sampling
from foundry.config import ConfigError, DataError, load_params
from foundry.config.sampling import READING

if TYPE_CHECKING:
    from foundry.inference import Generator
    from foundry.inference.request import Constraint


def generate(args: argparse.Namespace) -> None:
    from foundry.inference import Generator
    from foundry.inference.conversation import Settings, changed, converse
    from foundry.project.models import load_model_and_tokenizer
    from foundry.utils.device import get_device

    # Outside of a project only --model matters.
    device = args.device or (load_params(args.params).runtime.device if os.path.exists(args.params) else "auto")
    placed = get_device(device)
    generator = Generator(*load_model_and_tokenizer(Path(args.model), args.tokenizer), placed)
    how = changed(READING, given_sampling(args), generator.tokenizer)
    if args.prompt is None:
        if args.stop or args.json_schema:
            raise ConfigError("--stop and --json-schema need a prompt: a conversation has neither")
        converse(generator, settings=Settings(how, args.max_new_tokens, args.seed))
        return
    # It checks everything, so that an error comes before any text.
    options = {"max_new_tokens": args.max_new_tokens, "seed": args.seed, "stop": args.stop}
    pieces = generator.stream(args.prompt, constraint=_constraint(args, generator), **options, **asdict(how))
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()


def _constraint(args: argparse.Namespace, generator: Generator) -> Constraint | None:
    if args.json_schema is None:
        return None
    from foundry.inference.constraints import Grammars

    try:
        text = Path(args.json_schema).read_text(encoding="utf-8")
    except (OSError, ValueError) as e:
        raise DataError(f"{args.json_schema} cannot be read as text in UTF-8: {e}") from None
    return Grammars(generator.tokenizer).json_schema(text)


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
    s.add_argument("--seed", type=int, default=None, help="the same seed gives the same text")
    s.add_argument("--stop", metavar="TEXT", action="append", default=[], help="end before this text; may be repeated")
    text = "write JSON that is valid under the schema in this file; {} is any JSON"
    s.add_argument("--json-schema", action=TypedPath, metavar="FILE", help=text)
    add_sampling(s, READING)
