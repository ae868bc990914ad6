"""What a trained tokenizer is and how well it serves text that it was not trained on, beside a reference vocabulary.

All numbers are counted over held-out documents, bytes and characters on the raw text. Fertility is tokens for each word; where a
language writes no spaces between words only tokens for each character are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from sentencepiece import SentencePieceProcessor

from foundry.config import ConfigError, DataError
from foundry.tokenizers.encode import Encoder
from foundry.tokenizers.tokenizer import Tokenizer
from foundry.utils.files import sha256_file

NO_SPACES = {"bo", "ja", "km", "lo", "my", "th", "yue", "zh"}  # languages that write no spaces between words
BATCH = 256


class _Counter:
    """Counts of one vocabulary over batches of documents."""

    def __init__(self, sp: SentencePieceProcessor) -> None:
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

    def facts(self, sizes: dict[str, dict[str, int]]) -> dict[str, Any]:
        total, n_bytes = int(self.ids.sum()), sum(s["bytes"] for s in sizes.values())
        pieces = int(self.is_normal.sum())
        used = int(np.count_nonzero(self.ids[self.is_normal]))
        lengths, n = np.unique(self.lengths[self.is_normal], return_counts=True)
        return {
            "vocab_size": len(self.ids),
            "bytes_per_token": _ratio(n_bytes, total, 4),
            "byte_token_share": _ratio(int(self.ids[self.is_byte].sum()), total, 5),
            "pieces": pieces,
            "pieces_used": used,
            "pieces_used_share": _ratio(used, pieces, 4),
            "piece_lengths": {str(k): v for k, v in zip(lengths.tolist(), n.tolist(), strict=True)},
            "token_share_by_rank": _by_rank(self.ids),
            "languages": {lang: self._language(lang, size) for lang, size in sorted(sizes.items())},
        }

    def _language(self, lang: str, size: dict[str, int]) -> dict[str, Any]:
        tokens = self.tokens.get(lang, 0)
        words = {} if lang.split("-")[0] in NO_SPACES else {"tokens_per_word": _ratio(tokens, size["words"], 4)}
        return {
            **size,
            "tokens": tokens,
            "bytes_per_token": _ratio(size["bytes"], tokens, 4),
            "tokens_per_char": _ratio(tokens, size["chars"], 4),
            **words,
        }


def tokenizer_facts(
    path: str | Path, held_out: Iterable[tuple[str, str]], reference: str | Path | None = None
) -> dict[str, Any]:
    """Counts over held-out documents, and the proof that every text came back.

    Args:
        path: the trained tokenizer.
        held_out: (text, language) of each document; one pass.
        reference: a SentencePiece model whose numbers stand under `reference`.

    Raises:
        DataError: if a text does not survive encoding and decoding though the tokenizer has byte fallback.
        ConfigError: if the reference is not a SentencePiece model.
    """
    tokenizer = Tokenizer(path)
    encoder, ours = Encoder(tokenizer), _Counter(SentencePieceProcessor(model_file=str(tokenizer.path)))
    other_model = _reference(reference) if reference else None
    other = _Counter(other_model) if other_model else None
    sizes: dict[str, dict[str, int]] = {}
    documents = lossy = 0
    for batch in _batches(held_out):
        texts, langs = [text for text, _ in batch], [lang for _, lang in batch]
        ids, at = encoder.encode(pa.array(texts, pa.large_string()))
        ours.add(langs, ids, np.diff(at))
        for i, (text, lang) in enumerate(batch):
            documents += 1
            size = sizes.setdefault(lang, {"documents": 0, "bytes": 0, "chars": 0, "words": 0})
            size["documents"] += 1
            size["bytes"] += len(text.encode())
            size["chars"] += len(text)
            size["words"] += len(text.split())
            if tokenizer.decode(ids[at[i] : at[i + 1]].tolist()) != text:
                if tokenizer.byte_fallback:
                    raise DataError(
                        f"a document changes when it is encoded and decoded: {text[:80]!r}; clean removes U+2581, the only known cause"
                    )
                lossy += 1
        if other and other_model:
            encoded = other_model.encode(texts)
            other.add(langs, np.fromiter((i for e in encoded for i in e), np.int64), map(len, encoded))
    facts = {
        "sha256": tokenizer.sha256,
        "kind": tokenizer.kind,
        "held_out_documents": documents,
        "lossy_documents": lossy,
        **ours.facts(sizes),
    }
    if other and reference:
        facts["reference"] = {"sha256": sha256_file(reference), **other.facts(sizes)}
    return facts


def table(facts: dict[str, Any]) -> list[str]:
    """The facts as lines of a table, the reference in columns of its own."""
    sides = [("trained", facts)] + ([("reference", facts["reference"])] if "reference" in facts else [])
    lines = [f"{'':22}" + "".join(f"{name:>12}" for name, _ in sides)]

    def row(name: str, values: list[Any]) -> None:
        lines.append(f"{name:22}" + "".join(f"{'-' if v is None else v:>12}" for v in values))

    row("vocabulary", [f["vocab_size"] for _, f in sides])
    row("bytes a token", [f["bytes_per_token"] for _, f in sides])
    row("share of byte pieces", [f["byte_token_share"] for _, f in sides])
    row("share of pieces used", [f["pieces_used_share"] for _, f in sides])
    for lang in facts["languages"]:
        row(f"{lang}: bytes a token", [f["languages"][lang]["bytes_per_token"] for _, f in sides])
        row(f"{lang}: tokens a char", [f["languages"][lang]["tokens_per_char"] for _, f in sides])
        row(f"{lang}: tokens a word", [f["languages"][lang].get("tokens_per_word") for _, f in sides])
    return lines


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    rest = iter(documents)
    while batch := list(islice(rest, BATCH)):
        yield batch


def _ratio(a: int, b: int, digits: int) -> float:
    return round(a / max(1, b), digits)


def _by_rank(counts: np.ndarray) -> dict[str, float]:
    """Share of the text that the tokens of each band of ranks cover, the commonest first."""
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
