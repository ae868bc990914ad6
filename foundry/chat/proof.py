"""The proof that shards teach exactly the answers: each conversation is taken apart by its symbols, and compared.

It knows the shape of a conversation, not how the encoder makes it: `<s>`, then for each turn `<|im_start|>`, the role
and a line end, the content, `<|im_end|>`. An encoder that taught a role, left out an end symbol, gave it to the next
turn, wrote a second begin symbol, or made a symbol of a text that somebody typed does not pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from foundry.chat.example import Example
from foundry.chat.shards import ChatShards, EncodedExample
from foundry.config import DataError
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import BEGIN, END


def prove(shards: ChatShards, examples: Sequence[Example], tokenizer: Tokenizer) -> int:
    """Checks every conversation of the shards, and returns the number of answers that they teach.

    Args:
        examples: of the same split.

    Raises:
        DataError: naming the first example that is not what its turns say, and the fault; if an example with an answer
            to learn is in no shard.
    """
    headers = {role: np.array(tokenizer.encode(f"{role}\n")) for role in ("system", "user", "assistant")}
    begin, end = tokenizer.id_of(BEGIN), tokenizer.id_of(END)
    answers, proved = 0, set()
    for encoded in shards:
        turns = examples[encoded.example].messages
        if fault := _fault(encoded, [(t.role, bool(t.train)) for t in turns], headers, begin, end, tokenizer.bos_id):
            raise DataError(
                f"example {encoded.example} of {shards.split} (task {encoded.task}) would teach something else than "
                f"its answers: {fault}. This is a fault of the encoder or of a changed file; nothing was trained"
            )
        answers += sum(bool(t.train) for t in turns)
        proved.add(encoded.example)
    if missing := [i for i, e in enumerate(examples) if i not in proved and any(t.train for t in e.messages)]:
        raise DataError(f"example {missing[0]} of {shards.split} has an answer to learn, but is in no shard")
    return answers


def _fault(
    encoded: EncodedExample,
    turns: list[tuple[str, bool]],
    headers: dict[str, np.ndarray],
    begin: int,
    end: int,
    bos: int,
) -> str:
    """What is wrong; empty for nothing."""
    ids, learnt = encoded.tokens.astype(np.int64), encoded.learnt
    if ids[0] != bos or (ids == bos).sum() != 1:
        return f"{(ids == bos).sum()} begin symbols of a text, or not at its start"
    begins, ends = np.flatnonzero(ids == begin), np.flatnonzero(ids == end)
    if (
        len(begins) != len(turns)
        or len(ends) != len(turns)
        or (begins >= ends).any()
        or (ends[:-1] >= begins[1:]).any()
    ):
        return f"{len(begins)} begins and {len(ends)} ends of turns for {len(turns)} turns"
    expected = np.zeros(len(ids), bool)
    for (role, train), first, last in zip(turns, begins, ends, strict=True):
        header = headers[role]
        if train:
            if not np.array_equal(ids[first + 1 : first + 1 + len(header)], header):
                return f"an answer does not follow the ids of {role} and a line end"
            expected[first + 1 + len(header) : last + 1] = True
    if (wrong := np.flatnonzero(expected != learnt)).size:
        kind = "is not learnt" if expected[wrong[0]] else "is learnt"
        what = "an end of a turn" if ids[wrong[0]] == end else f"token {wrong[0]}"
        return f"{what} {kind}"
    return ""
