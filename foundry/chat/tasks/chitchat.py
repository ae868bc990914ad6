"""The preset `chitchat`: 7,168 dialogues of two people about everything, from the package chitchat_dataset (MIT).

They are cleaned first: personal data is replaced, and a dialogue with strong language is dropped. Who speaks first is
the user.
"""

from __future__ import annotations

import json
import re
from typing import Any

from foundry.chat.example import Example, Turn
from foundry.chat.tasks.base import Fits, Made, made_from_nothing
from foundry.chat.tasks.packages import CHITCHAT
from foundry.config import DataError
from foundry.data.clean.normalize import fix_mojibake, normalize
from foundry.data.clean.scrub import scrub

NAME = "chitchat"
LEAST_TURNS = 4
PERSONAL = ["email", "phone", "ip", "card", "cn_id"]
STRONG = re.compile(
    r"\b(?:ass(?:hole)?|bastard|bitch|bullshit|cock|cum|cunt|dick|fag|faggot|fuck\w*|jerk off|kill yourself|motherf\w*"
    r"|nazis?|nigg\w*|nudes?|penis|piss\w*|porn\w*|pussy|rape\w*|retard\w*|sex\w*|shit\w*|slut\w*|suicid\w*|vagina"
    r"|whore\w*)\b",
    re.IGNORECASE,
)


def chitchat(fits: Fits) -> Made:
    """Makes the examples; of a dialogue that is too long, the first turns that fit.

    Raises:
        DataError: if the package cannot be fetched, or is not what it was.
    """
    data = json.loads(CHITCHAT.member("chitchat_dataset/dataset.json"))
    if not isinstance(data, dict):
        raise DataError("the data set of chitchat_dataset is not a dictionary of dialogues")
    return dialogues(data, fits)


def dialogues(data: dict[str, Any], fits: Fits) -> Made:
    """Makes an example of each dialogue, or counts why not."""
    made = Made()
    account = made.account(NAME)
    for name, dialogue in sorted(data.items()):
        account.questions += 1
        turns = _turns(dialogue)
        if STRONG.search("\n".join(turn.content for turn in turns)):
            account.dropped["strong_language"] += 1
            continue
        while turns and (turns[-1].role == "user" or not fits(turns)):
            turns.pop()
        if len(turns) < LEAST_TURNS:
            account.dropped["too_short"] += 1
            continue
        split = made_from_nothing(f"chitchat {name}").split
        made.examples.append(Example(tuple(turns), NAME, NAME, None, 0, split, license=CHITCHAT.license))
        account.used += 1
        account.examples[split] += 1
    return made


def _turns(dialogue: dict[str, Any]) -> list[Turn]:
    """The turns of a dialogue; what one person says in a row is one turn."""
    said: list[tuple[str, str]] = []
    for message in (m for turn in dialogue["messages"] for m in turn):
        text, _ = scrub(normalize(fix_mojibake(message["text"])).strip(), PERSONAL)
        if not text:
            continue
        if said and said[-1][0] == message["sender"]:
            said[-1] = (message["sender"], f"{said[-1][1]}\n{text}")
        else:
            said.append((message["sender"], text))
    return [Turn("assistant" if k % 2 else "user", text) for k, (_, text) in enumerate(said)]
