"""Training of the tokenizer, with settings that give the same ids everywhere.

Only this group of SentencePiece settings gave the same ids in SentencePiece, transformers and llama.cpp on 12,246
hostile strings, and the same bytes on every run. BPE by default: a unigram model depends on the number of threads
(`tokenizer.train_threads`, part of the identity, so the same number gives the same bytes) and its GGUF export never
gives llama.cpp's ids. Identity normalisation and kept whitespace, because the default rewrites text; byte fallback,
because an unknown token loses it. SentencePiece silently drops lines over 4,192 bytes, so long lines are cut here. The
text comes in the order of the corpus, and the training draws no random numbers.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sentencepiece as spm

from foundry.config import ConfigError, DataError, TokenizerParams, VocabularyError
from foundry.config.corpus import CHAT_MARKERS, RESERVED
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID, UNK_ID
from foundry.utils.files import atomic_write

MAX_LINE_BYTES = 4096  # below SentencePiece's max_sentence_length of 4,192


@dataclass
class TextRead:
    """What the trainer has read so far."""

    documents: int = 0
    lines: int = 0
    bytes: int = 0


def cut_lines(text: str) -> Iterator[str]:
    """The lines of a text, line ends kept (they are text too), each cut to at most `MAX_LINE_BYTES` bytes of UTF-8.

    A cut is before a space if there is one in the last half of the piece, and never inside a character.
    """
    for line in re.findall(r"[^\n]*\n|[^\n]+", text):
        data = line.encode()
        while len(data) > MAX_LINE_BYTES:
            end = data.rfind(b" ", MAX_LINE_BYTES // 2, MAX_LINE_BYTES)
            if end < 0:
                end = MAX_LINE_BYTES
                while data[end] & 0xC0 == 0x80:  # a continuation byte
                    end -= 1
            yield data[:end].decode()
            data = data[end:]
        yield data.decode()


def train_tokenizer(texts: Iterable[str], params: TokenizerParams, path: str | Path) -> TextRead:
    """Trains a SentencePiece model and writes it to `path`.

    Args:
        texts: the documents to train on, in their fixed order; one pass.

    Returns:
        How much text was read.

    Raises:
        DataError: if there is no text.
        ConfigError: if the vocabulary is too small for the text. VocabularyError if it is too large.
    """
    read = TextRead()

    def lines() -> Iterator[str]:
        for text in texts:
            read.documents += 1
            for line in cut_lines(text):
                read.lines += 1
                read.bytes += len(line.encode())
                # The trainer takes a line end for the end of a sentence; documents keep theirs through the byte piece.
                if stripped := line.rstrip("\n"):
                    yield stripped

    options: dict[str, Any] = {}  # a setting that is not given is not written into the model either
    if params.user_symbols:
        # As pieces spell it: U+2581 is SentencePiece's space.
        options["user_defined_symbols"] = [s.replace(" ", "\u2581") for s in params.user_symbols]
    if not params.byte_fallback:
        options["required_chars"] = "\n"  # the trainer never sees a line end
    model = io.BytesIO()
    try:
        spm.SentencePieceTrainer.train(
            sentence_iterator=lines(),
            model_writer=model,
            model_type=params.kind,
            vocab_size=params.vocab_size,
            character_coverage=params.character_coverage,
            byte_fallback=params.byte_fallback,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            split_digits=params.split_digits,
            allow_whitespace_only_pieces=params.whitespace_pieces,
            unk_id=UNK_ID,
            bos_id=BOS_ID,
            eos_id=EOS_ID,
            pad_id=-1,
            control_symbols=[*CHAT_MARKERS, *RESERVED],
            max_sentence_length=4192,
            # BPE gives the same pieces in the same time with any number, but the number is written into the model.
            num_threads=params.train_threads if params.kind == "unigram" else 1,
            minloglevel=2,
            **options,
        )
    except RuntimeError as e:
        _explain(str(e), params, read)
        raise
    if not read.lines:
        raise _no_text()
    with atomic_write(path) as f:
        f.write(model.getvalue())
    return read


def _no_text() -> DataError:
    return DataError("there is no training text: data/clean/train is empty; look at reports/clean.json")


def _explain(message: str, params: TokenizerParams, read: TextRead) -> None:
    """Raises an error that names the parameter, for SentencePiece's messages about the text and the vocabulary."""
    if not read.lines or "sentences_.empty" in message:
        raise _no_text() from None
    if found := re.search(r"Vocabulary size too high \((\d+)\).*?<= (\d+)", message):
        raise VocabularyError(int(found[1]), int(found[2]), read.bytes) from None
    if "required_chars" in message:
        found = re.search(r"(\d+) vs (\d+)", message)
        need = found[2] if found else "the number of distinct characters"
        raise ConfigError(
            f"tokenizer.vocab_size ({params.vocab_size}) is smaller than the number of characters and bytes that need "
            f"a piece ({need}): raise it, or lower tokenizer.character_coverage, so that rarer characters are spelt in "
            "bytes"
        ) from None
