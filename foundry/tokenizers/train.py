"""Training of the tokenizer: the one group of SentencePiece settings that gave the same ids in SentencePiece, transformers and
llama.cpp on 12,246 hostile strings, and the same bytes on every run.

BPE by default: a unigram model depends on the number of threads (`tokenizer.train_threads`, part of the identity, so the same number
gives the same bytes) and its GGUF export never gives llama.cpp's ids. Identity normalisation and kept whitespace, because the default
rewrites text; byte fallback, because an unknown token loses it. SentencePiece silently drops lines over 4,192 bytes, so long lines are
cut here. The text comes in the order of the corpus, so chance has no part in the result.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece as spm

from foundry.config import ConfigError, DataError, TokenizerParams, VocabularyError
from foundry.config.corpus import CHAT_MARKERS, RESERVED
from foundry.tokenizers.tokenizer import BOS_ID, EOS_ID, UNK_ID
from foundry.utils.files import atomic_write

MAX_LINE_BYTES = 4096  # below SentencePiece's max_sentence_length of 4,192


def cut_lines(text: str) -> Iterator[str]:
    """The lines of a text, line ends kept (they are text too), each cut to at most `MAX_LINE_BYTES` bytes of UTF-8.

    A cut falls before a space when there is one in the last half of the piece, and never inside a character.
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


def train_tokenizer(texts: Iterable[str], params: TokenizerParams, path: str | Path) -> dict[str, Any]:
    """Trains a SentencePiece model and writes it to `path`.

    Args:
        texts: the documents to train on, in their fixed order; one pass.

    Returns:
        Facts: documents, lines and bytes used.

    Raises:
        DataError: if there is no text.
        ConfigError: if the vocabulary is too large or too small for the text (the message names the limit).
    """
    used = {"documents": 0, "lines": 0, "bytes": 0}

    def lines() -> Iterator[str]:
        for text in texts:
            used["documents"] += 1
            for line in cut_lines(text):
                used["lines"] += 1
                used["bytes"] += len(line.encode())
                # The trainer takes a line end for the end of a sentence; documents keep theirs through the byte piece.
                if stripped := line.rstrip("\n"):
                    yield stripped

    options: dict[str, Any] = {}  # a setting that is not given is not written into the model either
    if params.user_symbols:
        options["user_defined_symbols"] = [s.replace(" ", "\u2581") for s in params.user_symbols]  # as pieces spell it
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
        _explain(str(e), params, used)
        raise
    if not used["lines"]:
        raise DataError("there is no training text: data/clean/train is empty; look at reports/clean.json")
    with atomic_write(path) as f:
        f.write(model.getvalue())
    return used


def _explain(message: str, params: TokenizerParams, used: dict) -> None:
    """Turns SentencePiece's messages about the vocabulary into ones that name the parameter."""
    if not used["lines"] or "sentences_.empty" in message:
        raise DataError("there is no training text: data/clean/train is empty; look at reports/clean.json") from None
    if found := re.search(r"Vocabulary size too high \((\d+)\).*?<= (\d+)", message):
        raise VocabularyError(int(found[1]), int(found[2]), used["bytes"]) from None
    if "smaller than required_chars" in message or "required_chars" in message:
        found = re.search(r"(\d+) vs (\d+)", message)
        need = found[2] if found else "the number of distinct characters"
        raise ConfigError(
            f"tokenizer.vocab_size ({params.vocab_size}) is smaller than the characters and bytes that need a piece ({need}): "
            "raise it, or lower tokenizer.character_coverage (rarer characters are then spelt in bytes)"
        ) from None
