"""Trains a model on a text file; the same command resumes a training that was interrupted.

    python scripts/train.py book.txt --preset small --out out --max-iters 200
    python scripts/train.py book.txt --config configs/small.yaml

The folder --out gets `model`, `tokenizer`, and `state` with the checkpoints. The pipeline trains with `make repro`.
"""

from __future__ import annotations

import argparse

from foundry.commands.messages import errors_as_messages, show_every_character
from foundry.project.textfile import recipe, train_on
from foundry.utils.log import setup_logging

CHANGES = {"max_iters": int, "batch_size": int, "learning_rate": float, "eval_interval": int}


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="train.py", description="Trains a model on a text file, or resumes the training.")
    p.add_argument("text", help="a file in UTF-8, in which lines <|endoftext|> separate documents")
    p.add_argument("--preset", help="small, medium, rtx5060, m4pro or a profile of the pipeline (default: small)")
    p.add_argument("--config", metavar="FILE", help="YAML with the sections model and training, instead of a preset")
    p.add_argument("--out", default="out", metavar="FOLDER", help="folder of the training (default: %(default)s)")
    for name, kind in CHANGES.items():
        p.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar="N", help="replaces that of the preset or file"
        )
    p.add_argument("--vocab-size", type=int, metavar="N", help="default: 4096, or as many pieces as the text allows")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")
    p.add_argument("--seed", type=int, default=1, help="of the weights and of the order (default: %(default)s)")
    args = p.parse_args(argv)
    show_every_character()
    setup_logging()
    with errors_as_messages():
        pair = recipe(args.preset, args.config, {name: getattr(args, name) for name in CHANGES})
        last = train_on(args.text, pair, args.out, vocab_size=args.vocab_size, device=args.device, seed=args.seed)
        print(f"wrote {args.out}/model: validation {last['val_bits_per_byte']:.4f} bits per byte")


if __name__ == "__main__":
    main()
