"""What a number format costs: bits per byte, and how often the most likely token stays the same.

Each file is read back and dequantised into a MiniLLM, which scores the same documents as the model itself, in float32.
The difference is paired, document by document, so that its interval is far narrower than that of either number.
Not measured: llama.cpp also rounds activations while it multiplies blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from foundry.export.gguf_read import load_gguf
from foundry.export.proof import BitsPerByte, FormatCost, FormatCosts
from foundry.models import MiniLLM
from foundry.models.scoring import LOGITS, in_cache, score_documents
from foundry.utils.bootstrap import Interval, bootstrap, percentiles_95
from foundry.utils.targets import IGNORE

RESAMPLES = 1000


@dataclass(frozen=True)
class HeldOutText:
    """Held-out documents as batches for `foundry.models.scoring.score_documents`.

    Attributes:
        batches: (tokens (B, T), targets (B, T) with IGNORE where nothing is scored, document numbers (B,)), all int64.
        n_bytes: UTF-8 bytes of each document's raw text.
    """

    batches: list[tuple[np.ndarray, np.ndarray, np.ndarray]]
    n_bytes: np.ndarray


@dataclass(frozen=True)
class _Scores:
    """A model's scores of a text.

    Attributes:
        nats: float64 (documents,).
        choices: the most likely token at each scored position, in the order of the batches: int64 (positions,).
    """

    nats: np.ndarray
    choices: np.ndarray


def measure(
    files: dict[str, Path], model: MiniLLM, text: HeldOutText, device: torch.device | str = "cpu"
) -> FormatCosts:
    """The cost of each file on the same text; one other model at a time is in memory beside the source.

    Args:
        files: {number format: GGUF file}.
        model: the source; it is moved back to the CPU at the end.
        device: where the models are scored, in float32.

    Raises:
        ExportError: if a file cannot be read back.
    """
    source = _score(model.to(device), text)
    model.to("cpu")
    formats = {}
    for kind, path in files.items():
        rounded = _score(load_gguf(path, model.cfg).to(device), text)
        formats[kind] = FormatCost(
            file=path.name,
            bytes=path.stat().st_size,
            bits_per_byte=_bits(rounded.nats, text.n_bytes, 4),
            difference=_interval(rounded.nats - source.nats, text.n_bytes),
            top1_agreement=round(float((source.choices == rounded.choices).mean()), 4),
        )
    return FormatCosts(
        documents=len(text.n_bytes),
        tokens=len(source.choices),
        bytes=int(text.n_bytes.sum()),
        float=BitsPerByte(bits_per_byte=_bits(source.nats, text.n_bytes, 4)),
        formats=formats,
    )


def _score(model: MiniLLM, text: HeldOutText) -> _Scores:
    choices: list[np.ndarray] = []
    chunk = max(1, LOGITS // model.cfg.vocab_size)

    def nats_of(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        parts = []
        for x_i, y_i in in_cache(x, y):
            hidden = model.hidden(x_i).flatten(0, 1)
            for h, targets in zip(hidden.split(chunk), y_i.flatten().split(chunk), strict=True):
                logits = F.linear(h, model.head_weight).float()  # a soft cap is refused: `foundry.export.exportable`
                choices.append(logits.argmax(-1)[targets != IGNORE].cpu().numpy())
                parts.append(F.cross_entropy(logits, targets, ignore_index=IGNORE, reduction="none"))
        return torch.cat(parts).view_as(y)

    nats, _ = score_documents(model, text.batches, len(text.n_bytes), nats_of=nats_of)
    return _Scores(nats, np.concatenate(choices))


def _bits(nats: np.ndarray, n_bytes: np.ndarray, digits: int) -> float:
    return round(float(nats.sum() / math.log(2) / n_bytes.sum()), digits)


def _interval(nats: np.ndarray, n_bytes: np.ndarray) -> Interval:
    """Bits per byte with a 95 % bootstrap percentile interval over documents, seeded."""
    draws = bootstrap(lambda drawn: _bits(nats[drawn], n_bytes[drawn], 9), len(nats), RESAMPLES, seed=0)
    low, high = percentiles_95(draws)
    return Interval.rounded(_bits(nats, n_bytes, 5), low, high, 5)
