"""Conversations of made-up words, and a folder of chat data made from them."""

import random

from foundry.chat.example import Example, Turn
from foundry.chat.shards import write_chat

WORDS = ["salt", "water", "oven", "river", "king", "city", "music", "theory", "cell", "star", "stir", "boil", "onion"]


def conversation(rng, split="train", exchanges=1, words=6, task="talk", system=False):
    def say():
        return " ".join(rng.choices(WORDS, k=rng.randint(1, words)))

    turns = [Turn("system", say())] if system else []
    for _ in range(exchanges):
        turns += [Turn("user", say()), Turn("assistant", say())]
    return Example(tuple(turns), task, "made", None, 0, split)


def conversations(count, seed=1, split="train", tasks=("talk", "list"), **options):
    rng = random.Random(seed)
    return [conversation(rng, split, rng.randint(1, 3), task=tasks[i % len(tasks)], **options) for i in range(count)]


def write_conversations(folder, tokenizer, train=60, context=128, weights=None, **splits):
    """A folder of chat data.

    Args:
        train: the examples, or the number of conversations.
    """
    examples = {
        "train": conversations(train) if isinstance(train, int) else train,
        "val": conversations(8, 2, "val"),
        "test": conversations(8, 3, "test"),
        **splits,
    }
    write_chat(folder, examples, tokenizer, context=context, verifier_version=1, weights=weights)
    return folder
