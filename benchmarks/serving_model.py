"""Files of a model of some shape with random weights, for the benchmarks that serve it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import torch

from foundry.config import DataError, ModelConfig, TokenizerParams
from foundry.export.gguf_file import export_gguf
from foundry.models import MiniLLM, save_model
from foundry.models.facts import TrainingFacts
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.train import train_tokenizer

TEXT_BYTES = 4_000_000  # that the tokenizer is trained on


def text_of(project: Path) -> list[str]:
    """Documents of a project's training split.

    Raises:
        DataError: if the project has none.
    """
    texts, size = [], 0
    for part in sorted((project / "data/clean/train").glob("part-*.parquet")):
        for text in pq.read_table(part, columns=["text"])["text"].to_pylist():
            texts.append(text)
            size += len(text.encode())
            if size > TEXT_BYTES:
                return texts
    if not texts:
        raise DataError(f"{project} has no clean text: run `make repro` there, or give --project")
    return texts


def make_files(cfg: ModelConfig, project: Path, folder: Path, gguf_types: tuple[str, ...]) -> Tokenizer:
    """Writes `model/`, which `foundry serve` takes, `tokenizer/` and one `KIND.gguf` per type into a folder."""
    (folder / "tokenizer").mkdir(parents=True)
    path = folder / "tokenizer/tokenizer.model"
    train_tokenizer(text_of(project), TokenizerParams(vocab_size=cfg.vocab_size), path)
    tokenizer = Tokenizer(path)
    torch.manual_seed(0)
    model = MiniLLM(cfg)
    facts = TrainingFacts(
        fingerprint="0" * 16, tokenizer_sha256=tokenizer.sha256, index_sha256="0" * 64, steps=0, tokens=0
    )
    save_model(folder / "model", model, facts)
    for kind in gguf_types:
        export_gguf(model, tokenizer, folder / f"{kind}.gguf", kind, "benchmark")
    return tokenizer
