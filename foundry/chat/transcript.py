"""A conversation as a file: an example that `chat.sources` reads, with what is needed to get each answer again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from foundry.chat.conversation import Conversation
from foundry.config import ConfigError
from foundry.utils.files import write_text


@dataclass(frozen=True)
class Speaker:
    """The model that answers.

    Attributes:
        source: where it came from: an address of the registry, or a folder's name.
        version: of the registry; None for a folder.
        context: tokens that it reads.
    """

    name: str
    source: str
    version: str | None
    weights_sha256: str
    context: int

    def described(self) -> str:
        """One line for a person."""
        number = f", version {self.version}" if self.version else ""
        facts = f"weights {self.weights_sha256[:12]}, context {self.context} tokens"
        return f"{self.name}{number} from {self.source} ({facts})"


def save(name: str, talk: Conversation, model: Speaker) -> Path:
    """Writes a conversation as one line of JSON with `messages`, as OpenAI and Hugging Face have them.

    Raises:
        ConfigError: (a `ValueError`) without a name, without a turn, or if the file exists: a conversation is not
            replaced by another one.
    """
    if not name:
        raise ConfigError("give a file: /save conversation.jsonl")
    path = Path(name)
    if not talk.turns:
        raise ConfigError("there is nothing to save yet")
    if path.exists():
        raise ConfigError(f"{path} exists: give another name")
    answers = [
        {
            "seed": turn.reply.seed,
            "max_tokens": turn.reply.settings.tokens,
            "finish_reason": turn.reply.reason,
            "dropped_messages": turn.reply.dropped,
            "sampling": {k: v for k, v in asdict(turn.reply.settings.sampling).items() if v not in ((), None)},
        }
        for turn in talk.turns
    ]
    record = {
        "messages": [m._asdict() for m in talk.messages()],
        "model": model.name,
        "version": model.version,
        "weights_sha256": model.weights_sha256,
        "answers": answers,
    }
    write_text(path, json.dumps(record, ensure_ascii=False) + "\n")
    return path
