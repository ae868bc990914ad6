"""The preset `gym:NAME`: questions of a data set of reasoning-gym, checked by its own score."""

from __future__ import annotations

import json

from foundry.chat.example import Example, Turn
from foundry.chat.gym import data_set
from foundry.chat.tasks.base import Fits, Made, made_from_nothing

LICENSE = "Apache-2.0"
QUESTIONS = 5000


def gym(name: str, seed: int, fits: Fits) -> Made:
    """Makes the examples; the hash of a question draws its split.

    Args:
        name: `gym:NAME`, with the name of a data set in reasoning-gym.

    Raises:
        ConfigError: if the package is not installed, or has no such data set.
    """
    made = Made()
    account = made.account(name)
    seen = set()
    for entry in data_set(name, QUESTIONS, seed):
        account.questions += 1
        question, answer = entry["question"].strip(), entry["answer"]
        try:
            arguments = {"entry": json.dumps(entry, ensure_ascii=False)}
        except TypeError:
            account.dropped["not_json"] += 1
            continue
        turns = (Turn("user", question), Turn("assistant", str(answer).strip()))
        reason = (
            "no_answer" if answer is None else "repeated" if question in seen else "" if fits(turns) else "too_long"
        )
        if reason:
            account.dropped[reason] += 1
            continue
        seen.add(question)
        split = made_from_nothing(f"{name} {question}").split
        made.examples.append(Example(turns, name, name, None, 0, split, name, arguments, LICENSE))
        account.used += 1
        account.examples[split] += 1
    return made
