"""The public `DataLoader`: of shards, or of a text file whose tokenizer and shards are made once and kept beside it.

They are in `NAME.foundry/<hash>/{tokenizer,shards}` beside the file; the hash is over the text, the size of the
vocabulary and how the file is divided, so a changed file gets a new folder.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import torch

from foundry.config import ConfigError, DataError, Shard, TokenizerParams, VocabularyError
from foundry.data.schema import PartWriter, doc_id
from foundry.data.splits import SPLITS
from foundry.data.tokens import loader
from foundry.data.tokens.loader import check_numbers
from foundry.data.tokens.shard_writer import write_shards
from foundry.data.tokens.shards import Shards
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer
from foundry.utils.device import get_device
from foundry.utils.files import atomic_dir, sha256_file, sha256_json

DOCUMENT_CHARS = 4000  # about, where the file has no separators
HELD_OUT = 0.1  # share of the documents for validation; the test split is as large
LARGEST_VOCABULARY = 4096  # pieces, if the caller gives no number
SMALLEST_VOCABULARY = 300  # of `TokenizerParams.vocab_size`: 256 bytes, control symbols and some pieces
_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t]*\r?\n?", re.MULTILINE)


class DataLoader(loader.DataLoader):
    """Batches of shards (see `foundry.data.tokens.loader.DataLoader`), or of a plain text file.

    Args:
        data: `data/shards`, or shards that are already open; give either this or `file_path`.
        batch_size: sequences of a batch.
        seq_len: tokens of a sequence; give either this or `block_size`.
        seed: of the order.
        file_path: a text file in UTF-8, in which lines `<|endoftext|>` separate documents.
        block_size: another name of `seq_len`.
        device: where `batch` puts its tensors.
        vocab_size: of the text file's tokenizer; None: 4,096, or as many pieces as the text allows.
        rest: the other arguments of the loader.

    Attributes:
        tokenizer: of the text file; None for shards.

    Raises:
        DataError, ConfigError: as `make_shards`, and as the loader.
    """

    def __init__(
        self,
        data: str | Path | Shards | None = None,
        batch_size: int = 8,
        seq_len: int | None = None,
        seed: int = 1,
        *,
        file_path: str | Path | None = None,
        block_size: int | None = None,
        device: str | torch.device = "cpu",
        vocab_size: int | None = None,
        **rest: Any,
    ) -> None:
        if (data is None) == (file_path is None) or (seq_len is None) == (block_size is None):
            raise ConfigError("give either data (shards) or file_path, and either seq_len or block_size")
        length = block_size if seq_len is None else seq_len
        check_numbers(batch_size, length, seed)  # before a tokenizer is trained
        self.tokenizer: Tokenizer | None = None
        if file_path is not None:
            folder = make_shards(file_path, vocab_size)
            data, self.tokenizer = folder / "shards", Tokenizer(folder / "tokenizer")
        super().__init__(data, batch_size, length, seed, **rest)
        self.device = get_device(device) if isinstance(device, str) else device

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, targets = super().batch(step)
        return tokens.to(self.device), targets.to(self.device)


def make_shards(path: str | Path, vocab_size: int | None) -> Path:
    """Makes the tokenizer and the shards of a text file, unless they exist.

    Args:
        vocab_size: pieces of the tokenizer; None: 4,096, or as many as the text allows.

    Returns:
        The folder that contains `tokenizer` and `shards`.

    Raises:
        DataError: if the file is missing, empty, not UTF-8, or too short for three splits or for a tokenizer.
        ConfigError: if vocab_size is not valid. VocabularyError if it is too large for the text.
    """
    path = Path(path)
    if vocab_size is not None and not (isinstance(vocab_size, int) and vocab_size >= SMALLEST_VOCABULARY):
        raise ConfigError(
            f"vocab_size must be None or an integer of at least {SMALLEST_VOCABULARY}, got {vocab_size!r}"
        )
    if not path.is_file():
        raise DataError(f"{path} does not exist or is not a file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path} is not UTF-8 (byte {e.start}): save it as UTF-8, or use the pipeline, which repairs text and "
            "reads other encodings"
        ) from None
    name = sha256_json([sha256_file(path), vocab_size, DOCUMENT_CHARS, HELD_OUT, 1])[:16]
    folder = path.parent / f"{path.name}.foundry" / name
    if not folder.is_dir():
        documents = _documents(text)
        if len(documents) < 3:
            raise DataError(f"{path} has {len(text):,} characters, too few for three splits: add text")
        with atomic_dir(folder) as tmp:
            _write(documents, path.name, vocab_size, tmp)
    return folder


def _documents(text: str) -> list[str]:
    """The texts between separators; a long one is divided after a paragraph, or else after a line or a space."""
    out = []
    half = DOCUMENT_CHARS // 2
    for rest in _SEPARATOR.split(text):
        while len(rest) > 3 * half:
            ends = (rest.rfind(mark, half, DOCUMENT_CHARS) for mark in ("\n\n", "\n", " "))
            end = next((i for i in ends if i > 0), DOCUMENT_CHARS - 1)
            out.append(rest[: end + 1])
            rest = rest[end + 1 :]
        out.append(rest)
    return [d for d in (d.strip() for d in out) if d]


def _write(documents: list[str], source: str, vocab_size: int | None, folder: Path) -> None:
    order = list(range(len(documents)))
    random.Random(0).shuffle(order)
    held = max(1, round(len(documents) * HELD_OUT))
    split_of = {n: "val" if k < held else "test" if k < 2 * held else "train" for k, n in enumerate(order)}
    for split in SPLITS:
        with PartWriter(folder / "clean" / split) as out:
            for n, text in enumerate(documents):
                if split_of[n] == split:
                    out.add(doc_id(f"{n} {text}".encode()), text.encode(), source, "und")
    train = [d for n, d in enumerate(documents) if split_of[n] == "train"]
    _train(train, vocab_size, folder / "tokenizer" / "tokenizer.model")
    write_shards(folder / "clean", Tokenizer(folder / "tokenizer"), Shard(), folder / "shards")


def _train(texts: list[str], vocab_size: int | None, path: Path) -> None:
    asked = LARGEST_VOCABULARY if vocab_size is None else vocab_size
    try:
        train_tokenizer(texts, TokenizerParams(vocab_size=asked), path)
    except VocabularyError as e:
        if e.largest < SMALLEST_VOCABULARY:
            raise DataError(
                f"the text is too short for a tokenizer: {e.size:,} bytes of training text allow a vocabulary of at "
                f"most {e.largest} pieces, and at least {SMALLEST_VOCABULARY} are needed: add text"
            ) from None
        if vocab_size is not None:
            raise
        train_tokenizer(texts, TokenizerParams(vocab_size=e.largest), path)
