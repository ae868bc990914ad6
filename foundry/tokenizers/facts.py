"""What a trained tokenizer is and how well it compresses text that it was not trained on."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from foundry.config import DataError
from foundry.tokenizers.tokenizer import Tokenizer


def tokenizer_facts(path: str | Path, held_out: Iterable[str]) -> dict[str, Any]:
    """Counts over held-out text: bytes per token, share of tokens spelt in bytes, and that every text came back.

    Raises:
        DataError: if a text does not survive encoding and decoding.
    """
    tokenizer = Tokenizer(path)
    n_bytes = n_tokens = n_byte_tokens = documents = 0
    for text in held_out:
        ids = tokenizer.encode(text)
        if tokenizer.decode(ids) != text:
            raise DataError(
                f"a document changes when it is encoded and decoded: {text[:80]!r}; clean removes U+2581, the only known cause"
            )
        documents += 1
        n_bytes += len(text.encode())
        n_tokens += len(ids)
        n_byte_tokens += sum(map(tokenizer.is_byte, ids))
    return {
        "vocab_size": tokenizer.vocab_size,
        "sha256": tokenizer.sha256,
        "held_out_documents": documents,
        "bytes_per_token": round(n_bytes / max(1, n_tokens), 4),
        "byte_token_share": round(n_byte_tokens / max(1, n_tokens), 5),
    }
