"""Continues a prompt with a model of `scripts/train.py`: `foundry generate` with its folder and all its options.

python scripts/generate.py "Once upon a time" --out out --temperature 0.8
python scripts/generate.py --out out               # a conversation, as `foundry generate` without a prompt
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from foundry import cli
from foundry.project.textfile import MODEL, TOKENIZER


def main(argv: list[str] | None = None) -> None:
    p = argparse.ArgumentParser(prog="generate.py", add_help=False, allow_abbrev=False)
    p.add_argument("--out", default="out")
    args, rest = p.parse_known_args(sys.argv[1:] if argv is None else argv)
    folder = Path(args.out).absolute()
    cli.main(["generate", "--model", str(folder / MODEL), "--tokenizer", str(folder / TOKENIZER), *rest])


if __name__ == "__main__":
    main()
