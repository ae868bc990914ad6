"""Conversations of several exchanges: short examples one after the other, some below a system turn.

They teach that an answer belongs to the last question, and that a conversation goes on. The questions are those of
other tasks, of the same split; what is checked is the last answer.
"""

from __future__ import annotations

from collections.abc import Sequence

from foundry.chat.example import Example, Turn
from foundry.chat.tasks import smalltalk
from foundry.chat.tasks.base import Fits, Made, draw
from foundry.data.splits import SPLITS

NAME = "conversation"
SHORT = 240  # characters of an exchange that is part of a conversation
MOST = {"train": 1200, "val": 60, "test": 150}


def conversations(made: Made, seed: int, fits: Fits) -> list[Example]:
    """Two or three exchanges each, a third of them after small talk. One that does not fit is dropped and counted."""
    examples = []
    account = made.account(NAME)
    for split in SPLITS:
        pool = [e for e in made.examples if e.split == split and _short(e)]
        last = [e for e in pool if e.verifier is not None]
        talk = [e for e in pool if e.task == smalltalk.NAME]
        for k in range(MOST[split] if last else 0):
            account.questions += 1
            at = (seed, split, k)
            parts = [pool[draw(len(pool), *at, i)] for i in range(1 + draw(2, *at, "number"))]
            if talk and draw(3, *at, "talk") == 0:
                parts[0] = talk[draw(len(talk), *at, 0)]
            parts.append(last[draw(len(last), *at, "last")])
            example = _joined(parts, draw(10, *at, "system"))
            if not fits(example.messages):
                account.dropped["too_long"] += 1
                continue
            account.used += 1
            account.examples[split] += 1
            examples.append(example)
    made.examples += examples
    return examples


def _short(example: Example) -> bool:
    return sum(len(turn.content) for turn in example.messages) <= SHORT


def _joined(parts: Sequence[Example], system: int) -> Example:
    """The exchanges in their order; three of ten have a system turn.

    A conversation of the documents of several sources has the licence of its last exchange only if all agree.
    """
    turns = [turn for part in parts for turn in part.messages]
    if system < 3:
        turns.insert(
            0, Turn("system", smalltalk.SYSTEMS[draw(len(smalltalk.SYSTEMS), "system", *(t.content for t in turns))])
        )
    last = parts[-1]
    licenses = sorted({p.license for p in parts})
    return Example(
        tuple(turns),
        NAME,
        last.source,
        last.doc_id,
        last.wording,
        last.split,
        last.verifier,
        last.arguments,
        " AND ".join(licenses),
    )
