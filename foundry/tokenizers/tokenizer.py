"""The tokenizer: SentencePiece BPE with lossless settings, and control symbols that text can never produce.

Guarantees: `decode(encode(text)) == text` for every valid Unicode text without U+2581, which SentencePiece uses for the
space (cleaning replaces it); ids 0, 1, 2 are unknown, begin and end of a document; a chat marker in a text becomes the
pieces of its characters, never the marker's id.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from pathlib import Path

from sentencepiece import SentencePieceProcessor

from foundry.config import ConfigError, DataError
from foundry.utils.files import sha256_file

UNK_ID, BOS_ID, EOS_ID = 0, 1, 2


class Tokenizer:
    """A trained tokenizer.

    Args:
        path: `tokenizer.model`, or the folder that contains it.

    Raises:
        DataError: if there is no readable SentencePiece model.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / "tokenizer.model" if path.is_dir() else path
        if not self.path.is_file():
            raise DataError(f"{self.path} does not exist: run the train_tokenizer stage or `dvc checkout`")
        try:
            self._sp = SentencePieceProcessor(model_file=str(self.path))
        except (RuntimeError, OSError) as e:
            raise DataError(f"{self.path} is not a SentencePiece model ({e}): restore it or train it again") from None
        ids = (self._sp.unk_id(), self._sp.bos_id(), self._sp.eos_id())
        if ids != (UNK_ID, BOS_ID, EOS_ID):
            raise DataError(
                f"{self.path} has unknown, begin, end = {ids}; this project needs {(UNK_ID, BOS_ID, EOS_ID)}"
            )
        self.sha256 = sha256_file(self.path)
        self.kind = _model_type(self._sp.serialized_model_proto())
        self._user_defined: frozenset[int] | None = None

    @property
    def vocab_size(self) -> int:
        return self._sp.vocab_size()

    @property
    def byte_fallback(self) -> bool:
        """Whether unknown characters are spelt in byte pieces; without them they are lost."""
        return self.id_of("<0x00>") != UNK_ID and self.is_byte(self.id_of("<0x00>"))

    @property
    def keeps_text(self) -> bool:
        """Whether the model encodes text unchanged: no normalisation, no spaces added or removed."""
        probe = "  \uff21\u2460\u3000 a \ufb01\te\u0301\n "
        return self._sp.normalize(probe) == probe.replace(" ", "\u2581")

    @property
    def bos_id(self) -> int:
        return BOS_ID

    @property
    def eos_id(self) -> int:
        return EOS_ID

    def encode(self, text: str, bos: bool = False, eos: bool = False) -> list[int]:
        """Ids of a text; the begin and the end symbol only if `bos` and `eos` are set.

        Raises:
            ConfigError: (a `ValueError`) for a lone surrogate, which UTF-8 cannot encode.
        """
        try:
            text.encode()
        except UnicodeEncodeError as e:
            raise ConfigError(
                f"text is not valid Unicode: lone surrogate {text[e.start]!r} at position {e.start}"
            ) from None
        return [BOS_ID] * bos + self._sp.encode(text) + [EOS_ID] * eos

    def encode_batch(self, texts: list[str], threads: int = 1) -> list[list[int]]:
        """The ids of many texts, without begin and end symbols; the same for every number of threads."""
        return self._sp.encode(texts, num_threads=threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids. Control symbols give no text, each byte of an incomplete character gives U+FFFD.

        Raises:
            ConfigError: (a `ValueError`) for an id outside the vocabulary.
        """
        ids = [int(i) for i in ids]
        if wrong := [i for i in ids if not 0 <= i < self.vocab_size]:
            raise ConfigError(f"token ids must be in [0, {self.vocab_size}), got {wrong[0]}")
        return self._sp.decode(ids)

    def stream(self) -> TextStream:
        """A decoder for ids that come one by one; it never returns a part of a character."""
        return TextStream(self)

    def piece(self, token: int) -> str:
        """The piece of an id as SentencePiece spells it: U+2581 for the space, <0xAB> for a byte."""
        return self._sp.id_to_piece(token)

    def id_of(self, piece: str) -> int:
        return self._sp.piece_to_id(piece)

    def score(self, token: int) -> float:
        return self._sp.get_score(token)

    def is_control(self, token: int) -> bool:
        return self._sp.is_control(token)

    def is_byte(self, token: int) -> bool:
        return self._sp.is_byte(token)

    def is_user_defined(self, token: int) -> bool:
        """Whether the piece is one of `tokenizer.user_symbols`, which are cut out of a text before any merge."""
        if self._user_defined is None:  # SentencePiece's processor has no function for it
            self._user_defined = _user_defined(self._sp.serialized_model_proto())
        return token in self._user_defined

    def text_of(self, token: int) -> str:
        """The text that a piece means: its spelling with spaces in place of U+2581."""
        return self.piece(token).replace("\u2581", " ")


class TextStream:
    """Decodes tokens as they come, without ever cutting a character.

    SentencePiece spells a rare character in up to four byte tokens: their text is returned only when the character is
    complete or can no longer be completed.

    The results of `add`, and at last of `end`, join to `tokenizer.decode(tokens)`. Bytes that can no longer form a
    character are U+FFFD, as in SentencePiece. Each token costs the same, however long the text is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._pending: list[int] = []  # byte tokens that may still become a character: at most three

    def add(self, token: int) -> str:
        """The text that this token completes; often empty, because a byte token may not complete a character."""
        self._pending.append(token)
        if self._tokenizer.is_byte(token):
            ready = len(self._pending) - _unfinished(bytes(self._byte(t) for t in self._pending))
        else:
            ready = len(self._pending)
        done, self._pending = self._pending[:ready], self._pending[ready:]
        return self._tokenizer.decode(done) if done else ""

    def end(self) -> str:
        """The rest: U+FFFD for each byte of a character whose last bytes never came, or nothing."""
        rest, self._pending = self._pending, []
        return self._tokenizer.decode(rest) if rest else ""

    def _byte(self, token: int) -> int:
        return int(self._tokenizer.piece(token)[3:5], 16)  # <0xAB>


def _unfinished(data: bytes) -> int:
    """How many bytes at the end further ones may still complete to a character (0 to 3)."""
    for n in range(min(3, len(data)), 0, -1):
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            if not decoder.decode(data[-n:]):
                return n
        except UnicodeDecodeError:
            continue
    return 0


def _model_type(proto: bytes) -> str:
    """`bpe`, `unigram` or `other`: field 3 of the trainer's settings, which are field 2 of the model."""
    for number, value in _fields(proto):
        if number == 2 and isinstance(value, bytes):
            return {1: "unigram", 2: "bpe"}.get(dict(_fields(value)).get(3, 1), "other")
    return "unigram"  # the format's default


def _user_defined(proto: bytes) -> frozenset[int]:
    """Ids of the pieces of type 4, user defined: field 3 of a piece, which is field 1 of the model."""
    pieces = (value for number, value in _fields(proto) if number == 1 and isinstance(value, bytes))
    return frozenset(i for i, piece in enumerate(pieces) if dict(_fields(piece)).get(3) == 4)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """(number, value) of each field of a message in the wire format of protocol buffers.

    `sentencepiece.sentencepiece_model_pb2` would do it, but it needs the package protobuf, which is not among the
    dependencies of every installation of this project: SentencePiece itself does not require it.
    """
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        tag = varint()
        size = {1: 8, 5: 4}.get(tag & 7)
        if tag & 7 == 0:
            yield tag >> 3, varint()
        else:
            size = varint() if size is None else size
            yield tag >> 3, data[at : at + size]
            at += size
