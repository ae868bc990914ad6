"""The public `DataLoader`: shards, or a plain text file, whose tokenizer and shards are made once and kept beside it.

`NAME.foundry/<fingerprint>/{tokenizer,shards}` next to the file; the fingerprint is a hash over the text, the vocabulary and the
reading, so a changed file gets a new folder.
"""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import torch

from foundry.config import ConfigError, DataError, Shard, TokenizerParams, VocabularyError
from foundry.data.schema import PartWriter, doc_id
from foundry.data.tokens import loader
from foundry.data.tokens.loader import check_numbers
from foundry.data.tokens.shard_writer import write_shards
from foundry.data.tokens.shards import Shards
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer
from foundry.utils.device import get_device
from foundry.utils.files import atomic_dir, sha256_file, sha256_json

PIECE = 4000  # characters of a document, about, where the file has no separators
HELD_OUT = 0.1  # share of the documents that validate; as many test
LARGEST = 4096  # pieces, where none are asked for
SMALLEST = 300  # of `TokenizerParams.vocab_size`: 256 bytes, control symbols and some pieces
_SEPARATOR = re.compile(r"^<\|endoftext\|>[ \t]*\r?\n?", re.MULTILINE)


class DataLoader(loader.DataLoader):
    """Batches of shards (see `foundry.data.tokens.loader.DataLoader`), or of a plain text file.

    Args:
        data: `data/shards`; or instead of it
        file_path: a text file, in UTF-8; lines `<|endoftext|>` separate documents.
        batch_size: sequences of a batch.
        block_size: tokens of a sequence; `seq_len` is another name.
        device: where `batch` puts its tensors.
        vocab_size: of the text file's tokenizer; None: 4,096, or as many pieces as the text allows.

    Attributes:
        tokenizer: of the text file; None for shards.

    Raises:
        DataError, ConfigError: as `make_shards`.
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
            raise ConfigError("give shards or file_path, and seq_len or block_size: one of each two")
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
    """The folder with `tokenizer` and `shards` of a text file.

    Args:
        vocab_size: pieces of the tokenizer; None: 4,096, or as many as the text allows.

    Raises:
        DataError: if the file is missing, empty, not UTF-8, or too short to hold anything out.
        ConfigError: if the vocabulary is too large for the text, or the text for any; with the largest possible.
    """
    path = Path(path)
    if vocab_size is not None and not (isinstance(vocab_size, int) and vocab_size >= SMALLEST):
        raise ConfigError(f"vocab_size must be a number of pieces, at least {SMALLEST}, or None; got {vocab_size!r}")
    if not path.is_file():
        raise DataError(f"{path} does not exist or is no file")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as e:
        raise DataError(
            f"{path} is not UTF-8 (byte {e.start}); save it as UTF-8, or use the pipeline, which repairs it and reads other encodings"
        ) from None
    what = sha256_json([sha256_file(path), vocab_size, PIECE, HELD_OUT, 1])[:16]
    folder = path.parent / f"{path.name}.foundry" / what
    if not folder.is_dir():
        documents = _documents(text)
        if len(documents) < 3:
            raise DataError(f"{path} holds {len(text):,} characters: too few to train on and to hold some out")
        with atomic_dir(folder) as tmp:
            _write(documents, path.name, vocab_size, tmp)
    return folder


def _documents(text: str) -> list[str]:
    """Documents between separators; a long one in pieces that end with a paragraph, else with a line or a space."""
    out = []
    for whole in _SEPARATOR.split(text):
        while len(whole) > PIECE * 3 // 2:
            end = next(
                (i for mark in ("\n\n", "\n", " ") if (i := whole.rfind(mark, PIECE // 2, PIECE)) > 0), PIECE - 1
            )
            out.append(whole[: end + 1])
            whole = whole[end + 1 :]
        out.append(whole)
    return [d for d in (d.strip() for d in out) if d]


def _write(documents: list[str], source: str, vocab_size: int | None, folder: Path) -> None:
    order = list(range(len(documents)))
    random.Random(0).shuffle(order)
    held = max(1, round(len(documents) * HELD_OUT))
    split_of = {n: "val" if k < held else "test" if k < 2 * held else "train" for k, n in enumerate(order)}
    for split in ("train", "val", "test"):
        with PartWriter(folder / "clean" / split) as out:
            for n, text in enumerate(documents):
                if split_of[n] == split:
                    out.add(doc_id(f"{n} {text}".encode()), text.encode(), source, "und")
    train = [d for n, d in enumerate(documents) if split_of[n] == "train"]
    _train(train, vocab_size, folder / "tokenizer" / "tokenizer.model")
    write_shards(folder / "clean", Tokenizer(folder / "tokenizer"), Shard(), folder / "shards")


def _train(texts: list[str], vocab_size: int | None, path: Path) -> None:
    asked = LARGEST if vocab_size is None else vocab_size
    try:
        train_tokenizer(texts, TokenizerParams(vocab_size=asked), path)
    except VocabularyError as e:
        if e.largest < SMALLEST:
            raise DataError(
                f"the text is too short for a tokenizer: its {e.size:,} bytes of training text allow a vocabulary of at most "
                f"{e.largest} pieces, and {SMALLEST} are the fewest; add text"
            ) from None
        if vocab_size is not None:
            raise
        train_tokenizer(texts, TokenizerParams(vocab_size=e.largest), path)
