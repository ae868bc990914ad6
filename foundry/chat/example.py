"""What every kind of post-training reads: a conversation, where it came from, and how an answer is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from foundry.config import DataError
from foundry.tokenizers.chat import ROLES

Scalar = str | int | float | bool | None
Arguments = Mapping[str, Scalar | list[Scalar]]
Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        train: whether a model learns to write the content and the end of this turn; by default it does for those of the
            assistant, and only an assistant's turn can be trained.

    Raises:
        DataError: for an unknown role, and for a turn of another role that is to be trained.
    """

    role: Literal["system", "user", "assistant"]
    content: str
    train: bool | None = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"a turn has the role {self.role!r}; roles are {', '.join(ROLES)}")
        if self.train is None:
            object.__setattr__(self, "train", self.role == "assistant")
        elif self.train and self.role != "assistant":
            raise DataError(f"a turn of the role {self.role} cannot be trained: only the assistant's turns can")


@dataclass(frozen=True)
class Example:
    """A conversation to learn from, or, without a trained turn, a question to be answered.

    Attributes:
        task: what is asked for; metrics are reported by task.
        source: the corpus source, preset or file that it came from.
        doc_id: the document of the corpus that it was made from (None: it was made from none); it is in the split of
            that document.
        wording: number of the task's wording, from 0; 0 for examples that users bring.
        verifier: the program that checks an answer (`foundry.chat.verifiers`), or None.
        arguments: of that program: JSON scalars, and lists of them.
        license: SPDX name of the licence of the content.
    """

    messages: tuple[Turn, ...]
    task: str
    source: str
    doc_id: str | None
    wording: int
    split: Split
    verifier: str | None = None
    arguments: Arguments = field(default_factory=dict)
    license: str = "unknown"

    def __post_init__(self) -> None:
        if not self.messages:
            raise DataError(f"an example of the task {self.task} has no turn")

    @property
    def prompt(self) -> tuple[Turn, ...]:
        """The turns before the last answer; all of them if the conversation does not end with one."""
        return self.messages[:-1] if self.messages[-1].role == "assistant" else self.messages

    @property
    def answer(self) -> str | None:
        """The last answer; None if the conversation does not end with one."""
        return self.messages[-1].content if self.messages[-1].role == "assistant" else None
