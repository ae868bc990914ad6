"""The data room against its peers, both sides in one run.

    python -m benchmarks.data filters --peers /path/to/venv/bin/python
    python -m benchmarks.data duplicates --peers /path/to/venv/bin/python
    python -m benchmarks.data encode
    python -m benchmarks.data loader
    python -m benchmarks.data memory

`filters` and `duplicates` need datatrove, which has its own pins, in an environment of its own:
`python3 -m venv peers && peers/bin/pip install "datatrove[processing]==0.10.1" spacy orjson "xxhash<4"`.
"""

from __future__ import annotations

import argparse
import importlib

WHAT = ("filters", "duplicates", "encode", "loader", "memory")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="see python -m benchmarks.data WHAT --help")
    args = parser.parse_args()
    importlib.import_module(f"benchmarks.data_{args.what}").main(args.options)


if __name__ == "__main__":
    main()
