"""Answers to the prompts of an evaluation: all at once by the engine, against one after another.

    python -m benchmarks.chat_answers --prompts 600

The prompts are questions about the titles of the test split. Every answer has as many tokens as the longest that the
evaluation allows for a short task, because the base model, which is used here, does not end its answers.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.rounds import Measure, add_rounds, take_turns
from foundry.chat.answers import SLOTS, Asked, answer_all
from foundry.data.tokens.shards import read_clean
from foundry.models import load_model
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat

TOKENS = 40


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=600, help="number of prompts (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of PyTorch (default: %(default)s)")
    parser.add_argument("--root", type=Path, default=Path("."), help="a project with a trained model")
    add_rounds(parser, 3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer, model = Tokenizer(args.root / "artifacts/tokenizer"), load_model(args.root / "artifacts/model")
    rows = (row for part in read_clean(args.root / "data/clean/test", ["text"]) for row in part)
    titles = [row["text"].split("\n")[0][:40] for row in rows]
    questions = [f"What is {titles[i % len(titles)]}? {i}" for i in range(args.prompts)]
    asked = [Asked(tuple(encode_chat(tokenizer, [Message("user", q)])), TOKENS) for q in questions]
    alone = asked[: max(1, len(asked) // 20)]  # a twentieth: one after another takes long

    def rate(part: list[Asked], slots: int) -> float:
        begin = time.perf_counter()
        answers = answer_all(model, tokenizer, part, slots=slots)
        return sum(len(a.ids) for a in answers) / (time.perf_counter() - begin)

    def together() -> float:
        begin = time.perf_counter()
        found = rate(asked, SLOTS)
        print(f"  {len(asked)} prompts in {time.perf_counter() - begin:.1f} s")
        return found

    sides = {"one after another": lambda: rate(alone, 1), f"{SLOTS} at a time": together}
    take_turns(sides, args.rounds, Measure("tokens/s", more_is_better=True)).print("answers", base="one after another")


if __name__ == "__main__":
    main()
