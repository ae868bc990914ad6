"""The presets: sources of examples that a user names in `chat.presets`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundry.chat.tasks.base import Fits, Made
from foundry.chat.tasks.chat_en import chat_en
from foundry.config import ConfigError


@dataclass(frozen=True)
class Corpus:
    """What presets may be made from.

    Attributes:
        clean: the folder of the clean documents.
        fields: the folder of their side table.
        licenses: of the sources, by name.
    """

    clean: Path
    fields: Path
    licenses: dict[str, str]


def make_preset(name: str, corpus: Corpus, seed: int, fits: Fits) -> Made:
    """Makes the examples of a preset: a pure function of its arguments and of the corpus.

    Args:
        seed: of the draws.
        fits: whether a conversation fits the context of the model; what does not is dropped and counted.

    Raises:
        ConfigError: for an unknown name.
        DataError: if the corpus lacks what the preset is made from.
    """
    if name == "chat-en":
        return chat_en(corpus.clean, corpus.fields, corpus.licenses, seed, fits)
    raise ConfigError(f"unknown preset {name!r} in chat.presets; known are chat-en, chat-zh, chitchat and gym:NAME")
