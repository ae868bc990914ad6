"""Chat: the one template, and the one encoder from a conversation to ids.

`CHAT_TEMPLATE` is for those who render a conversation as text (transformers, llama.cpp); `encode_chat` gives the ids
that transformers' `apply_chat_template` gives for it, with one difference: a control symbol that somebody typed into a
message stays text, where a rendered template makes it the symbol. So a message can neither end itself nor begin
another one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

from foundry.config import ConfigError
from foundry.config.corpus import CHAT_MARKERS

if TYPE_CHECKING:
    from foundry.tokenizers.tokenizer import Tokenizer

BEGIN, END = CHAT_MARKERS  # of a turn
ROLES = ("system", "user", "assistant")

# It begins with the begin symbol (llama.cpp adds it anyway) and marks the assistant's answers, and nothing else, for
# training.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
TEMPLATE_SHA256 = hashlib.sha256(CHAT_TEMPLATE.encode()).hexdigest()  # part of the identity of all that learns from it


class Message(NamedTuple):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class SupervisedTurn(Protocol):
    """A turn of a conversation to learn from; `train`: whether a model learns to write its content and its end."""

    @property
    def role(self) -> str: ...
    @property
    def content(self) -> str: ...
    @property
    def train(self) -> bool | None: ...


class SupervisedIds(NamedTuple):
    """A conversation to learn from.

    Attributes:
        mask: for each id, whether a model learns to predict it.
    """

    ids: list[int]
    mask: list[bool]


def encode_chat(
    tokenizer: Tokenizer, messages: Sequence[Message], *, answer: bool = True, open_last: bool = False
) -> list[int]:
    """Ids of a conversation; exactly one begin symbol, at the start.

    Args:
        answer: ends with the beginning of the assistant's turn.
        open_last: leaves the last message without its end symbol, so that a model continues it; `answer` must be False.

    Raises:
        ConfigError: (a `ValueError`) for an unknown role, for a content that is not text or not valid Unicode, for both
            arguments at once, and for `open_last` without a message.
    """
    if open_last and (answer or not messages):
        raise ConfigError("open_last continues the last message: give one, and answer=False")
    begin, end = tokenizer.id_of(BEGIN), tokenizer.id_of(END)
    ids = [tokenizer.bos_id]
    for i, message in enumerate(messages):
        _check(message.role, message.content)
        # One text between two symbols is encoded at once, as transformers does: a merge may cross the line end.
        ids += [begin, *tokenizer.encode(f"{message.role}\n{message.content}")]
        if not (open_last and i == len(messages) - 1):
            ids += [end, *tokenizer.encode("\n")]
    if answer:
        ids += [begin, *tokenizer.encode("assistant\n")]
    return ids


def encode_supervised(tokenizer: Tokenizer, turns: Sequence[SupervisedTurn]) -> SupervisedIds:
    """Ids of a complete conversation, as `encode_chat(answer=False)` gives them, and the mask of what is learnt.

    The mask follows from the structure and from nothing that the text contains: content and end symbol of the turns
    that are trained. The begin symbols, the roles, the line ends between turns and all other turns are never learnt.

    Raises:
        ConfigError: (a `ValueError`) for an unknown role, for text that is not valid Unicode, and if the tokenizer
            merges the line end before a trained answer with the answer: at inference an answer begins after the ids
            of `assistant` and a line end, so the model would meet ids that it was not trained on.
    """
    begin, end, line_end, headers = _fixed_ids(tokenizer)
    ids, mask = [tokenizer.bos_id], [False]
    for turn in turns:
        _check(turn.role, turn.content)
        header, text = headers[turn.role], tokenizer.encode(f"{turn.role}\n{turn.content}")
        learnt = bool(turn.train)
        if learnt and text[: len(header)] != header:
            raise ConfigError(
                f"the tokenizer merges the line end before the answer {turn.content[:40]!r} with the answer, which "
                "inference cannot do: train it without user symbols that begin with a line end"
            )
        ids += [begin, *text, end, *line_end]
        mask += [False] * (1 + len(header)) + [learnt] * (len(text) - len(header) + 1) + [False] * len(line_end)
    return SupervisedIds(ids, mask)


@lru_cache(maxsize=4)
def _fixed_ids(tokenizer: Tokenizer) -> tuple[int, int, list[int], dict[str, list[int]]]:
    """(begin of a turn, its end, a line end, the beginning of a turn of each role): half of the encoder's time."""
    headers = {role: tokenizer.encode(f"{role}\n") for role in ROLES}
    return tokenizer.id_of(BEGIN), tokenizer.id_of(END), tokenizer.encode("\n"), headers


def _check(role: str, content: str) -> None:
    if role not in ROLES:
        raise ConfigError(f"role must be one of {', '.join(ROLES)}, got {role!r}")
    if not isinstance(content, str):  # None would become the word
        raise ConfigError(f"the content of a message must be text, got {type(content).__name__}")


def end_of_turn(tokenizer: Tokenizer) -> tuple[int, ...]:
    """Ids that end an answer in a conversation: the end of the turn and the end of the text."""
    return tokenizer.id_of(END), tokenizer.eos_id
