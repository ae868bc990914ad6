"""What a trained tokenizer is and how well it encodes text that it was not trained on, beside a reference vocabulary.

All numbers are counted over held-out documents, bytes and characters on the raw text. Fertility is tokens per word; for
a language that writes no spaces between words only tokens per character are reported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sentencepiece import SentencePieceProcessor

from foundry.config import ConfigError, DataError
from foundry.tokenizers.encode import Encoder
from foundry.tokenizers.sample import LanguageShare
from foundry.tokenizers.tokenizer import Tokenizer
from foundry.utils.files import sha256_file
from foundry.utils.records import Record

NO_SPACES = {"bo", "ja", "km", "lo", "my", "th", "yue", "zh"}  # languages that write no spaces between words
BATCH = 256


class LanguageFacts(Record):
    """How a vocabulary encodes the documents of one language; `tokens_per_word` is None where words have no spaces."""

    documents: int
    bytes: int
    chars: int
    words: int
    tokens: int
    bytes_per_token: float
    tokens_per_char: float
    tokens_per_word: float | None


class VocabularyFacts(Record):
    """How a vocabulary encodes the held-out documents.

    Attributes:
        byte_token_share: share of the tokens that are byte pieces.
        pieces, pieces_used: all but bytes and control symbols, and those of them that occur in the text.
        piece_lengths: {characters: how many pieces have that length}.
        token_share_by_rank: {band of ranks, the most frequent pieces first: share of the tokens}.
        languages: by the language's code.
    """

    sha256: str
    vocab_size: int
    bytes_per_token: float
    byte_token_share: float
    pieces: int
    pieces_used: int
    pieces_used_share: float
    piece_lengths: dict[str, int]
    token_share_by_rank: dict[str, float]
    languages: dict[str, LanguageFacts]


class TrainingText(Record):
    """The corpus, and how much of it the tokenizer was trained on.

    Attributes:
        languages: the sample by language, if it was balanced.
        documents, lines, bytes: what the trainer read.
    """

    corpus_documents: int
    corpus_bytes: int
    languages: dict[str, LanguageShare] | None = None
    documents: int
    lines: int
    bytes: int


class TokenizerFacts(Record):
    """The content of `facts.json` of a tokenizer and of `reports/tokenizer.json`.

    Attributes:
        kind: `bpe` or `unigram`.
        lossy_documents: held-out documents that do not come back from their ids; 0 with byte fallback.
        reference: the numbers of the vocabulary that it is compared with.
    """

    kind: str
    held_out_documents: int
    lossy_documents: int
    trained: VocabularyFacts
    reference: VocabularyFacts | None = None
    training: TrainingText | None = None

    def vocabularies(self) -> list[tuple[str, VocabularyFacts]]:
        """The trained vocabulary and the reference, if there is one, by name."""
        return [("trained", self.trained), *([("reference", self.reference)] if self.reference else [])]

    def to_json(self) -> dict[str, Any]:
        """The facts as the file contains them: those of the trained vocabulary without a key of their own."""
        facts = self.model_dump(exclude_none=True)
        trained = facts.pop("trained")
        head = {k: facts.pop(k) for k in ("kind", "held_out_documents", "lossy_documents")}
        return {"sha256": trained["sha256"], **head, **trained, **facts}


@dataclass
class _Size:
    """Documents of a language, counted on the raw text."""

    documents: int = 0
    bytes: int = 0
    chars: int = 0
    words: int = 0

    def add(self, text: str) -> None:
        self.documents += 1
        self.bytes += len(text.encode())
        self.chars += len(text)
        self.words += len(text.split())


class _Counter:
    """Counts of one vocabulary over batches of documents."""

    def __init__(self, sp: SentencePieceProcessor, sha256: str) -> None:
        self.sha256 = sha256
        self.ids = np.zeros(sp.vocab_size(), np.int64)
        self.tokens: dict[str, int] = {}
        self.is_byte = np.array([sp.is_byte(i) for i in range(len(self.ids))], bool)
        self.is_normal = np.array(
            [
                not (sp.is_byte(i) or sp.is_control(i) or sp.is_unknown(i) or sp.is_unused(i))
                for i in range(len(self.ids))
            ]
        )
        self.lengths = np.array([len(sp.id_to_piece(i)) for i in range(len(self.ids))])

    def add(self, langs: list[str], ids: np.ndarray, counts: Iterable[int]) -> None:
        self.ids += np.bincount(ids, minlength=len(self.ids))
        for lang, n in zip(langs, counts, strict=True):
            self.tokens[lang] = self.tokens.get(lang, 0) + int(n)

    def facts(self, sizes: dict[str, _Size]) -> VocabularyFacts:
        total, n_bytes = int(self.ids.sum()), sum(s.bytes for s in sizes.values())
        pieces = int(self.is_normal.sum())
        used = int(np.count_nonzero(self.ids[self.is_normal]))
        lengths, n = np.unique(self.lengths[self.is_normal], return_counts=True)
        return VocabularyFacts(
            sha256=self.sha256,
            vocab_size=len(self.ids),
            bytes_per_token=_ratio(n_bytes, total, 4),
            byte_token_share=_ratio(int(self.ids[self.is_byte].sum()), total, 5),
            pieces=pieces,
            pieces_used=used,
            pieces_used_share=_ratio(used, pieces, 4),
            piece_lengths={str(k): v for k, v in zip(lengths.tolist(), n.tolist(), strict=True)},
            token_share_by_rank=_by_rank(self.ids),
            languages={lang: self._language(lang, size) for lang, size in sorted(sizes.items())},
        )

    def _language(self, lang: str, size: _Size) -> LanguageFacts:
        tokens = self.tokens.get(lang, 0)
        return LanguageFacts(
            **asdict(size),
            tokens=tokens,
            bytes_per_token=_ratio(size.bytes, tokens, 4),
            tokens_per_char=_ratio(tokens, size.chars, 4),
            tokens_per_word=None if lang.split("-")[0] in NO_SPACES else _ratio(tokens, size.words, 4),
        )


def tokenizer_facts(
    path: str | Path, held_out: Iterable[tuple[str, str]], reference: str | Path | None = None
) -> TokenizerFacts:
    """Counts over held-out documents, and verifies that every text comes back from its ids.

    Args:
        path: the trained tokenizer.
        held_out: (text, language) of each document; one pass.
        reference: a SentencePiece model to compare with.

    Raises:
        DataError: if a text does not survive encoding and decoding though the tokenizer has byte fallback.
        ConfigError: if the reference is not a SentencePiece model.
    """
    tokenizer = Tokenizer(path)
    encoder = Encoder(tokenizer)
    ours = _Counter(SentencePieceProcessor(model_file=str(tokenizer.path)), tokenizer.sha256)
    other_model = _reference(reference) if reference else None
    other = _Counter(other_model, sha256_file(reference)) if reference and other_model else None
    sizes: dict[str, _Size] = {}
    documents = lossy = 0
    for batch in _batches(held_out):
        texts, langs = [text for text, _ in batch], [lang for _, lang in batch]
        ids, starts = encoder.encode(pa.array(texts, pa.large_string()))
        ours.add(langs, ids, np.diff(starts))
        for i, (text, lang) in enumerate(batch):
            documents += 1
            sizes.setdefault(lang, _Size()).add(text)
            if tokenizer.decode(ids[starts[i] : starts[i + 1]].tolist()) != text:
                if tokenizer.byte_fallback:
                    raise DataError(
                        f"a document changes when it is encoded and decoded: {text[:80]!r}; "
                        "clean removes U+2581, the only known cause"
                    )
                lossy += 1
        if other and other_model:
            encoded = other_model.encode(texts)
            other.add(langs, np.fromiter((i for e in encoded for i in e), np.int64), map(len, encoded))
    return TokenizerFacts(
        kind=tokenizer.kind,
        held_out_documents=documents,
        lossy_documents=lossy,
        trained=ours.facts(sizes),
        reference=other.facts(sizes) if other else None,
    )


def table(facts: TokenizerFacts) -> list[str]:
    """The facts as lines of a table with one column per vocabulary."""
    names = [name for name, _ in facts.vocabularies()]
    sides = [vocabulary for _, vocabulary in facts.vocabularies()]
    rows: list[tuple[str, list[Any]]] = [
        ("", names),
        ("vocabulary", [s.vocab_size for s in sides]),
        ("bytes per token", [s.bytes_per_token for s in sides]),
        ("share of byte pieces", [s.byte_token_share for s in sides]),
        ("share of pieces used", [s.pieces_used_share for s in sides]),
    ]
    for lang in facts.trained.languages:
        found = [s.languages[lang] for s in sides]
        rows += [
            (f"{lang}: bytes per token", [x.bytes_per_token for x in found]),
            (f"{lang}: tokens per char", [x.tokens_per_char for x in found]),
            (f"{lang}: tokens per word", [x.tokens_per_word for x in found]),
        ]
    return [f"{name:24}" + "".join(f"{'-' if v is None else v:>12}" for v in values) for name, values in rows]


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    rest = iter(documents)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _ratio(a: int, b: int, digits: int) -> float:
    return round(a / max(1, b), digits)


def _by_rank(counts: np.ndarray) -> dict[str, float]:
    """Share of the text that the tokens of each band of ranks cover, the most frequent first."""
    ordered = np.sort(counts)[::-1]
    out, first = {}, 0
    for last in (10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000, 300_000, 1 << 20):
        if first >= len(ordered):
            break
        last = min(last, len(ordered))
        out[f"{first + 1}-{last}"] = _ratio(int(ordered[first:last].sum()), int(ordered.sum()), 5)
        first = last
    return out


def _reference(path: str | Path) -> SentencePieceProcessor:
    if not Path(path).is_file():
        raise ConfigError(f"tokenizer.reference: {path} does not exist; it must be a SentencePiece model")
    try:
        return SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as e:
        raise ConfigError(f"tokenizer.reference: {path} is not a SentencePiece model ({e})") from None
