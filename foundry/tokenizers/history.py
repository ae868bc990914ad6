"""A conversation that has become longer than the context: which of its turns the model still reads.

One policy for the terminal, the server and the Python interface: the oldest turns go, whole, and the system message and
the last turn always stay. Cutting at tokens instead would lose the system message first and begin the prompt in the
middle of a sentence; refusing ends the conversation (nanochat #581).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from foundry.tokenizers.chat import Message, encode_chat

if TYPE_CHECKING:
    from foundry.tokenizers.tokenizer import Tokenizer

ROOM = 256  # tokens that an answer may need; of a smaller context, half


class Fitted(NamedTuple):
    """What the model reads of a conversation.

    Attributes:
        ids: of the messages that stay; they may still be too many for the context.
        dropped: how many messages, the oldest ones after the system message, were left out.
    """

    ids: list[int]
    dropped: int


def room_for_answer(context: int, wanted: int | None = None) -> int:
    """Tokens of the context that a conversation leaves to its answer.

    Args:
        wanted: the largest number of tokens of the answer, if it is known.
    """
    room = min(ROOM, context // 2)
    return room if wanted is None else min(wanted, room)


def fit_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    context: int,
    room: int | None = None,
    *,
    answer: bool = True,
    open_last: bool = False,
) -> Fitted:
    """Ids of a conversation, without its oldest turns if the context has no room for them.

    A turn is a message of the user with the answers to it; what comes before the first one, apart from the system
    message, counts as one. The system message and the last turn are never dropped, even if they alone do not fit.

    Args:
        context: tokens that the model reads.
        room: tokens that must be left for the answer as long as there is a turn to drop; None: `room_for_answer`.
        answer, open_last: as for `encode_chat`.

    Raises:
        ConfigError: (a `ValueError`) as `encode_chat`.
    """
    room = room_for_answer(context) if room is None else room
    system = sum(1 for _ in takewhile(lambda m: m.role == "system", messages))
    starts = [i for i in range(system, len(messages)) if i == system or messages[i].role == "user"]
    # Messages are encoded one by one, so that the lengths add up.
    lengths = [len(encode_chat(tokenizer, (m,), answer=False)) - 1 for m in messages]
    total, first = len(encode_chat(tokenizer, (), answer=answer)) + sum(lengths), system
    for start in starts[1:]:
        if total + room <= context:
            break
        total -= sum(lengths[first:start])
        first = start
    kept = [*messages[:system], *messages[first:]]
    return Fitted(encode_chat(tokenizer, kept, answer=answer, open_last=open_last), first - system)
