"""Scores a model of `scripts/train.py` on the test documents of its text file.

    python scripts/evaluate.py book.txt --out out

The pipeline's report (`make repro`) has much more: by source and position, calibration, compressors, tasks.
"""

from __future__ import annotations

import argparse

from foundry.commands.messages import errors_as_messages, show_every_character
from foundry.project.textfile import score_on


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="evaluate.py", description="Scores a trained model on held-out documents.")
    p.add_argument("text", help="the file that it was trained on: a tenth of the documents was held out for this")
    p.add_argument("--out", default="out", metavar="FOLDER", help="folder of the training (default: %(default)s)")
    p.add_argument("--vocab-size", type=int, metavar="N", help="as it was given to train.py")
    p.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"), help="default: %(default)s")
    args = p.parse_args(argv)
    show_every_character()
    with errors_as_messages():
        found = score_on(args.text, args.out, vocab_size=args.vocab_size, device=args.device)
        print(f"test: {found.value:.4f} bits per byte (95 % interval {found.low:.4f} to {found.high:.4f})")


if __name__ == "__main__":
    main()
