"""The presets: sources of examples that a user names in `chat.presets`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from foundry.chat.tasks.base import Fits, Made
from foundry.chat.tasks.chat_en import chat_en
from foundry.chat.tasks.chat_zh import chat_zh
from foundry.chat.tasks.chitchat import chitchat
from foundry.chat.tasks.gym import gym
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
        ConfigError: for an unknown name, and for `gym:NAME` if reasoning-gym is not installed or has no such data set.
        DataError: if the corpus lacks what the preset is made from, or a package cannot be fetched.
    """
    if name == "chat-en":
        return chat_en(corpus.clean, corpus.fields, corpus.licenses, seed, fits)
    if name == "chat-zh":
        return chat_zh(corpus.clean, corpus.fields, corpus.licenses, seed, fits)
    if name == "chitchat":
        return chitchat(fits)
    if name.startswith("gym:"):
        return gym(name, seed, fits)
    raise ConfigError(f"unknown preset {name!r} in chat.presets; known are chat-en, chat-zh, chitchat and gym:NAME")
