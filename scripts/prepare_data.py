"""Makes the tokenizer and the shards of a text file, beside it, and prints what they contain.

    python scripts/prepare_data.py book.txt [--vocab-size 2000]

`scripts/train.py` does the same first. The pipeline (`make repro`) reads many files, cleans them and removes
duplicates.
"""

from __future__ import annotations

import argparse

from foundry.commands.messages import errors_as_messages, show_every_character
from foundry.project.textfile import describe_splits


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(
        prog="prepare_data.py", description="Makes the tokenizer and the shards of a text file."
    )
    p.add_argument("text", help="a file in UTF-8, in which lines <|endoftext|> separate documents")
    p.add_argument("--vocab-size", type=int, metavar="N", help="default: 4096, or as many pieces as the text allows")
    args = p.parse_args(argv)
    show_every_character()
    with errors_as_messages():
        print("\n".join(describe_splits(args.text, args.vocab_size)))


if __name__ == "__main__":
    main()
