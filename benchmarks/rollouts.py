"""Rollouts: answers of a group drawn at the same time against one after the other, by the same engine.

    python -m benchmarks.rollouts [--model artifacts/chat/sft] [--groups 8] [--samples 8] [--limit 64] [--rounds 3]

Both sides draw the same answers, which is checked: the ratio is of the time for the same tokens.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch

from benchmarks.rounds import Measure, Rounds, add_rounds, take_turns
from foundry.chat.rollouts import Drawn, draw, rollout_seed
from foundry.models import load_model
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import Message, encode_chat

QUESTIONS = ("Name exactly 5 ingredients for soup.", "What is a river?", "Spell the word music.", "What is 17 + 25?")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="artifacts/chat/sft", help="folder of a model (default: %(default)s)")
    parser.add_argument("--tokenizer", default="artifacts/tokenizer", help="its tokenizer (default: %(default)s)")
    parser.add_argument("--groups", type=int, default=8, help="prompts of a step (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=8, help="answers to each (default: %(default)s)")
    parser.add_argument("--limit", type=int, default=64, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of torch (default: %(default)s)")
    add_rounds(parser, 3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model, tokenizer = load_model(Path(args.model)), Tokenizer(Path(args.tokenizer))
    asked = [encode_chat(tokenizer, [Message("user", QUESTIONS[g % len(QUESTIONS)])]) for g in range(args.groups)]
    prompts = [ids for ids in asked for _ in range(args.samples)]
    seeds = [rollout_seed(1, 0, g, s) for g in range(args.groups) for s in range(args.samples)]
    found: dict[int, list[Drawn]] = {}

    def turn(slots: int) -> float:
        begin = time.perf_counter()
        found[slots] = draw(model, tokenizer, prompts, seeds, args.limit, slots)
        seconds = time.perf_counter() - begin
        return sum(len(d.ids) for d in found[slots]) / seconds

    every = len(prompts)
    draw(model, tokenizer, prompts, seeds, 4, every)  # kernels are compiled and memory is touched before any turn
    sides = {"one at a time": lambda: turn(1), f"{every} at a time": lambda: turn(every)}
    result: Rounds[float] = take_turns(sides, args.rounds, Measure("tokens/s", more_is_better=True))
    tokens = sum(len(d.ids) for d in found[every])
    result.print(f"{every} answers, {tokens:,} tokens", "one at a time")
    print("the same answers, bit for bit" if found[1] == found[every] else "THE ANSWERS DIFFER: do not quote")


if __name__ == "__main__":
    main()
