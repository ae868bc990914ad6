"""The loader of fine-tuning: the batch of step N is a pure function of (chat data, pre-training shards, seed, N).

Complete conversations are packed into rows, planned once from their lengths; none is ever cut, and each fills the
places up to its last learnt token, so that every row has a target. One that is longer than a row is left out and
counted. An epoch reads all rows in the order of its own bijection. With `pretraining_share`, rows of pre-training text
stand between them at even distances: row n of the run, counted over all steps, is one of text exactly if the number of
such rows, share * n rounded down, grows with it. Rank r of w takes rows [r*B/w, (r+1)*B/w) of the global batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from foundry.chat.shards import ChatShards, EncodedExample
from foundry.config import ConfigError, DataError
from foundry.data.tokens.loader import DataLoader, RowPart, check_numbers
from foundry.data.tokens.order import permute
from foundry.data.tokens.packing import Packed, SourceSpans
from foundry.utils.splitmix import key


class ChatRow(NamedTuple):
    """What a row of a batch has: conversations, or parts of pre-training documents.

    Attributes:
        row: of the global batch.
    """

    row: int
    examples: list[EncodedExample]
    text: list[RowPart]


class ChatLoader:
    """Batches of (tokens, targets, segments): int64, int64 with -100 where nothing is learnt, int32 with -1 at padding.

    Each has the shape (batch_size / world_size, seq_len).

    Args:
        data: `data/chat`, or its open shards.
        batch_size: rows of the global batch.
        seq_len: tokens of a row.
        seed: of the order.
        split: of the chat data.
        rank, world_size: which part of the global batch this process reads.
        pretraining: `data/shards`, needed if `pretraining_share` is not 0.
        pretraining_share: share of the rows that are pre-training text.

    Attributes:
        rows: the rows of the global batch that this process reads.
        rows_per_epoch: chat rows of an epoch.
        tokens_per_epoch: places for tokens in an epoch, padding and pre-training text included.
        learnt_per_epoch: chat tokens that are learnt in an epoch, on average.
        padding: share of the chat rows' places that is padding.
        too_long: examples that are longer than a row and are left out.
        follows_weights: False.
        widths_vary: False.

    Raises:
        DataError: if no example fits a row, the data is damaged, or the pre-training shards are of another tokenizer.
        ConfigError: for a number out of its range, or a batch_size that is not divisible by world_size.
    """

    packing = "best_fit"
    follows_weights = False
    widths_vary = False

    def __init__(
        self,
        data: str | Path | ChatShards,
        batch_size: int,
        seq_len: int,
        seed: int = 1,
        *,
        split: str = "train",
        rank: int = 0,
        world_size: int = 1,
        pretraining: str | Path | None = None,
        pretraining_share: float = 0.0,
    ) -> None:
        check_numbers(batch_size, seq_len, seed)
        if world_size < 1 or batch_size % world_size or not 0 <= rank < world_size:
            raise ConfigError(
                f"batch_size ({batch_size}) must be a positive multiple of world_size ({world_size}), "
                f"and rank ({rank}) must be in [0, world_size)"
            )
        if not 0 <= pretraining_share < 1 or (pretraining_share and pretraining is None):
            raise ConfigError(
                f"pretraining_share must be at least 0 and less than 1, and needs pre-training shards; got "
                f"{pretraining_share} and {pretraining}"
            )
        self.shards = data if isinstance(data, ChatShards) else ChatShards(data, split)
        self.batch_size, self.seq_len, self.seed = batch_size, seq_len, seed
        self.rows = range(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        self.share = Fraction(pretraining_share).limit_denominator(10_000)
        self.text = DataLoader(pretraining, 1, seq_len, key(seed, 3) >> 1) if self.share else None
        if self.text and self.text.shards.index.tokenizer_sha256 != self.shards.index.tokenizer_sha256:
            raise DataError(
                f"{pretraining} was made with another tokenizer than {self.shards.folder}: run `dvc repro` for both"
            )
        sources, self.too_long = _sources(self.shards, seq_len)
        if not sources:
            raise DataError(
                f"the {self.shards.split} split of {self.shards.folder} has no example that fits a row of {seq_len} "
                f"tokens ({self.too_long} are longer): raise model.max_seq_len, or add shorter examples"
            )
        self._layout = Packed(self.shards.tokens, sources, seq_len, seed, best_fit=True, learnt=self.shards.learnt)
        self.rows_per_epoch, self.padding = self._layout.samples, self._layout.padding
        if not self.rows_per_epoch:
            raise DataError("chat.weights leave no row of examples in an epoch: raise them")
        self.tokens_per_epoch = round(self.rows_per_epoch * seq_len / (1 - self.share))
        tasks = self.shards.index.splits[self.shards.split].tasks
        self.learnt_per_epoch = round(sum(t.learnt * self.shards.weight(name) for name, t in tasks.items()))

    @property
    def vocab_size(self) -> int:
        return self.shards.index.vocab_size

    @property
    def identity(self) -> dict[str, str]:
        """The hashes that the batches depend on, and the exact share of pre-training rows."""
        own = {**self.shards.index.identity, "pretraining_share": str(self.share)}
        return own | ({"pretraining_index_sha256": self.text.shards.index.sha256} if self.text else {})

    @property
    def bytes_per_token(self) -> float:
        """Bytes of the answers per learnt token, on average."""
        tasks = self.shards.index.splits[self.shards.split].tasks.values()
        return sum(t.bytes for t in tasks) / max(1, sum(t.learnt for t in tasks))

    def tensors(self, step: int, documents: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """(tokens, targets, segments) of a step, counted from 0.

        Args:
            documents: with segments, so that attention does not cross conversations; without, they are None.

        Raises:
            ConfigError: for a step below 0 or too large.
        """
        shape = len(self.rows), self.seq_len
        tokens, targets, segments = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.int32)
        chat, text = self._places(step)
        for epoch in sorted({e for _, e, _ in chat}):
            at = [place for place, e, _ in chat if e == epoch]
            samples = np.array([s for _, e, s in chat if e == epoch])
            tokens[at], targets[at] = self._layout.read(epoch, samples)
            segments[at] = self._layout.boundaries(epoch, samples)[0]
        for place, number in text:
            x, y, parts = self.text.tensors(number, documents=True)
            tokens[place], targets[place], segments[place] = x[0].numpy(), y[0].numpy(), parts[0].numpy()
        found = torch.from_numpy(segments) if documents else None
        return torch.from_numpy(tokens), torch.from_numpy(targets), found

    def contents(self, step: int) -> Iterator[ChatRow]:
        """What this rank's rows of a step read, in their order."""
        chat, text = self._places(step)
        rows = {place: (epoch, sample) for place, epoch, sample in chat}
        numbers = dict(text)
        for place, row in enumerate(self.rows):
            if place in rows:
                spans = self._layout.spans(*rows[place])
                found = [
                    self.shards.at(s.shard, int(np.searchsorted(self.shards.offsets[s.shard], s.first))) for s in spans
                ]
                yield ChatRow(row, found, [])
            else:
                yield ChatRow(row, [], list(self.text.parts(numbers[place])))

    def describe(self, step: int, most: int = 8) -> str:
        """The examples and documents of a step in one line, for an error message."""
        names = [
            name
            for row in self.contents(step)
            for name in (
                *(f"example {e.example} ({e.task})" for e in row.examples),
                *(f"{part.shard} {part.doc_id}" for part in row.text),
            )
        ]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return f"it read {', '.join(names[:most])}{more}"

    def _places(self, step: int) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
        """The rows of a step.

        Returns:
            (place among this rank's rows, epoch, sample) of each chat row, and (place, number) of each row of text.
        """
        if step < 0 or (step + 1) * self.batch_size >= 2**63:
            raise ConfigError(f"a step must be from 0 to 2^63 / batch_size, got {step}")
        a, b = self.share.numerator, self.share.denominator
        places, numbers, text = [], [], []
        for place, row in enumerate(self.rows):
            n = step * self.batch_size + row
            before = n * a // b
            if (n + 1) * a // b > before:
                text.append((place, before))
            else:
                places.append(place)
                numbers.append(n - before)
        epochs, samples = np.divmod(np.array(numbers, np.int64), self.rows_per_epoch)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            samples[here] = permute(samples[here], self.rows_per_epoch, key(self.seed, int(epoch)))
        chat = list(zip(places, epochs.tolist(), samples.tolist(), strict=True))
        return chat, text


def _sources(shards: ChatShards, seq_len: int) -> tuple[list[SourceSpans], int]:
    """The examples that fit a row, those of one weight together, and the number of the others."""
    by_weight: dict[float, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    too_long = 0
    for shard in range(len(shards.tokens)):
        places = shards.places(shard).astype(np.int64)
        fits = places <= seq_len
        too_long += int((~fits).sum())
        weight = np.array([shards.weight(task) for task in shards.tasks[shard]])
        for value in np.unique(weight[fits]):
            here = fits & (weight == value)
            first = shards.offsets[shard][:-1][here].astype(np.int64)
            by_weight.setdefault(float(value), []).append((np.full(len(first), shard), first, places[here]))
    sources = [
        SourceSpans(weight, *(np.concatenate(column) for column in zip(*parts, strict=True)))
        for weight, parts in sorted(by_weight.items())
    ]
    return sources, too_long
