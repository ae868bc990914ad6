"""What the one training loop is given: where batches come from, what is minimised, how a model is validated.

Pre-training brings a loader of token shards, the next-token loss and bits per byte of held-out text. Another kind of
training brings others and changes no line of the loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Batch = tuple[Tensor | None, ...]  # each with one row per sequence of this rank, so that a batch is cut by rows


class Loader(Protocol):
    """The batch of a number is a pure function of the data, the seed and the number (law 2).

    Attributes:
        batch_size: sequences of the global batch.
        seq_len: tokens of a sequence.
        packing: what a sequence is.
        seed: seed of the order.
        tokens_per_epoch: places for tokens in an epoch.
        vocab_size: size of the tokenizer's vocabulary.
        identity: hashes of everything that the batches depend on, by name; `index_sha256` and `tokenizer_sha256` among
            them, which the model's facts name.
        bytes_per_token: bytes of raw text per token, on average.
        follows_weights: whether a batch depends on the model's weights as well, which makes it a function of the state
            that its step begins with: it is never read ahead.
        widths_vary: whether the batches differ in their tokens per sequence. Each width would be compiled by itself,
            so such a run is compiled only where `runtime.compile` is `always`.
    """

    batch_size: int
    seq_len: int
    packing: str
    seed: int
    tokens_per_epoch: int
    follows_weights: bool
    widths_vary: bool

    @property
    def vocab_size(self) -> int: ...

    @property
    def identity(self) -> dict[str, str]: ...

    @property
    def bytes_per_token(self) -> float: ...

    def tensors(self, number: int, documents: bool) -> Batch:
        """This rank's rows of a batch, as the loss takes them; `documents`: with the boundaries of the documents."""

    def describe(self, number: int) -> str:
        """What a batch reads, in a few words, for an error message."""


class Loss(Protocol):
    """Losses are sums over valid terms, divided by their global count (law 6).

    Attributes:
        identity: what decides the loss besides the recipe, by name; part of the run's fingerprint (law 1).
    """

    @property
    def identity(self) -> dict[str, Any]: ...

    def count(self, *batch: Tensor | None) -> Tensor:
        """The number of terms in these rows. A step whose batch has none, on any process, changes no weight."""

    def __call__(self, model: nn.Module, *batch: Tensor | None) -> tuple[Tensor, Tensor]:
        """(what is minimised, what is reported), summed over these rows."""


class Validator(Protocol):
    """Validation changes nothing and draws no random number (law 8).

    Attributes:
        identity: what decides the metrics besides the recipe, by name; part of the run's fingerprint, because
            the rows of the validations are part of its state.
    """

    @property
    def identity(self) -> dict[str, Any]: ...

    def __call__(
        self, model: nn.Module, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> dict[str, float]:
        """Metrics by name, the same on every process that takes part.

        Args:
            model: for its mode and its device.
            apply: calls a function of (model, *batch); under FSDP with all weights, which every process must ask for.
            precision: of autocast.
            rows: sequences that fit a forward pass.
        """
