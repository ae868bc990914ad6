"""`index.json` of the chat data: one schema for its writer and its readers. Imports no torch."""

from __future__ import annotations

from pathlib import Path

from foundry.config import DataError
from foundry.data.splits import SPLITS
from foundry.tokenizers.chat import TEMPLATE_SHA256
from foundry.utils.files import sha256_json, write_json
from foundry.utils.records import Record

NAME = "index.json"
FORMAT = 1
AGAIN = "run `dvc repro chat/dvc.yaml:chat_data`"


class ChatShard(Record):
    """One shard.

    Attributes:
        file: its name in the folder of the split.
        learnt: tokens that a model learns to predict.
    """

    file: str
    sha256: str
    examples: int
    tokens: int
    learnt: int


class TaskTotal(Record):
    """The examples of a task that are in the shards of a split.

    Attributes:
        bytes: UTF-8 bytes of the answers that are learnt.
    """

    examples: int
    tokens: int
    learnt: int
    bytes: int


class ChatSplit(Record):
    """One split.

    Attributes:
        examples: all of them, also those without an answer to learn, which are in no shard.
        examples_sha256: hash of `examples.parquet`.
    """

    examples: int
    examples_sha256: str
    shards: list[ChatShard]
    tasks: dict[str, TaskTotal]


class ChatIndex(Record):
    """The whole index.

    Attributes:
        dtype: of the tokens, `uint16` or `uint32`.
        template_sha256: hash of the chat template that the conversations were encoded with.
        verifier_version: of the verifiers that the examples were checked with.
        context: the largest number of input tokens of an example.
        weights: by task, how often an epoch reads its examples; 1 for those that are not named.
        splits: by name: train, val, test.
    """

    format: int = FORMAT
    dtype: str
    vocab_size: int
    tokenizer_sha256: str
    template_sha256: str
    verifier_version: int
    context: int
    weights: dict[str, float]
    splits: dict[str, ChatSplit]

    @property
    def sha256(self) -> str:
        """Hash of the index, and through its hashes of every file: the identity of the data."""
        return sha256_json(self.model_dump())

    @property
    def identity(self) -> dict[str, str]:
        """The hashes that every batch depends on, by name."""
        return {
            "index_sha256": self.sha256,
            "tokenizer_sha256": self.tokenizer_sha256,
            "template_sha256": self.template_sha256,
        }

    def write(self, folder: str | Path) -> None:
        write_json(Path(folder) / NAME, self.model_dump())


def read_index(folder: str | Path) -> ChatIndex:
    """The index of a folder of chat data.

    Raises:
        DataError: if it is missing, does not follow the schema, is of another format, or the conversations were encoded
            with another chat template than this version has.
    """
    path = Path(folder) / NAME
    index = ChatIndex.read(path, f"the index of the chat data; {AGAIN}", DataError)
    if index.format != FORMAT or set(index.splits) != set(SPLITS):
        raise DataError(f"{path} has format {index.format} and splits {sorted(index.splits)}: {AGAIN}")
    if index.template_sha256 != TEMPLATE_SHA256:
        raise DataError(
            f"{folder} was encoded with the chat template {index.template_sha256[:12]}…, this version has "
            f"{TEMPLATE_SHA256[:12]}…: a model would meet other ids than it was trained on; {AGAIN}"
        )
    return index
