"""Validation of fine-tuning: what held-out answers cost the model, by task, and what it forgot of plain text."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundry.chat.shards import ChatShards, EncodedExample
from foundry.config import DataError
from foundry.data.tokens.documents import ScoringBatch
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents
from foundry.training.pretraining import HeldOutText
from foundry.utils.targets import IGNORE


class HeldOutAnswers:
    """A `training.protocols.Validator`: every example is scored in a row of its own, and only what is learnt counts.

    Args:
        shards: of the validation split.
        most: examples that are scored, as many of each task as possible, evenly from the split.
        seq_len: longest row; an example that does not fit is not scored.
        text: pre-training text, whose bits per byte rise by what is forgotten.
        chunk: positions whose logits exist at a time.

    Raises:
        DataError: if no example can be scored.
    """

    def __init__(self, shards: ChatShards, most: int, seq_len: int, text: HeldOutText, chunk: int) -> None:
        self.examples = _spread([e for e in shards if _places(e) <= seq_len], most)
        if not self.examples:
            raise DataError(
                f"the validation split of {shards.folder} has no example of at most {seq_len} tokens: the forgetting "
                "and the gain of a fine-tuning could not be seen; add examples"
            )
        self.most, self.text, self.chunk = most, text, chunk

    @property
    def identity(self) -> dict[str, Any]:
        """The loader has the hash of the data, the recipe says how many tokens of text."""
        return {"examples": self.most, **self.text.identity}

    def __call__(
        self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> dict[str, float]:
        """Metrics of answers, over all tasks and of each (NAME/TASK), and of plain text.

        Returns:
            val_loss, nats per learnt token; val_answer_bits_per_byte, over the bytes of the answers' text, with the end
            symbol among the bits; val_bits_per_byte of plain text.
        """

        def nats(model: MiniLLM, tokens: Tensor, targets: Tensor) -> Tensor:
            return model.nats(tokens, targets, chunk=self.chunk)

        sums, counts = score_documents(
            model, rows_of(self.examples, rows), len(self.examples), precision, lambda x, y: apply(nats, x, y)
        )
        sizes, tasks = np.array([e.n_bytes for e in self.examples]), np.array([e.task for e in self.examples])

        def metrics(at: Any, suffix: str) -> dict[str, float]:
            bits = sums[at].sum() / math.log(2)
            return {
                f"val_loss{suffix}": sums[at].sum() / counts[at].sum(),
                # An answer may be empty: its end symbol costs bits, and has no byte.
                f"val_answer_bits_per_byte{suffix}": bits / max(1, sizes[at].sum()),
            }

        found = metrics(slice(None), "")
        for task in sorted(set(tasks.tolist())):
            found |= metrics(tasks == task, f"/{task}")
        text = self.text(model, apply, precision, rows)
        return found | {"val_bits_per_byte": text["val_bits_per_byte"]}


def rows_of(examples: Sequence[EncodedExample], rows: int) -> Iterator[ScoringBatch]:
    """Batches of at most `rows` conversations, one in a row, those of like length together."""
    order = sorted(range(len(examples)), key=lambda i: (-_places(examples[i]), i))
    for at in range(0, len(order), rows):
        numbers = order[at : at + rows]
        tokens = np.zeros((len(numbers), _places(examples[numbers[0]])), np.int64)
        targets = np.full(tokens.shape, IGNORE, np.int64)
        for row, number in enumerate(numbers):
            e, n = examples[number], _places(examples[number])
            tokens[row, :n] = e.tokens[:n]
            targets[row, :n] = np.where(e.learnt[1 : n + 1], e.tokens[1 : n + 1].astype(np.int64), IGNORE)
        yield ScoringBatch(tokens, targets, np.array(numbers))


def _places(example: EncodedExample) -> int:
    """The input tokens of an example: those before its last learnt one."""
    return int(np.flatnonzero(example.learnt)[-1])


def _spread(examples: Sequence[EncodedExample], most: int) -> list[EncodedExample]:
    """At most `most` examples, as many of each task as possible, evenly from each task's."""
    by_task: dict[str, list[EncodedExample]] = {}
    for e in examples:
        by_task.setdefault(e.task, []).append(e)
    chosen, left = [], most
    for rest, (_, found) in enumerate(sorted(by_task.items(), key=lambda item: len(item[1]))):
        n = min(len(found), left // (len(by_task) - rest))
        chosen += [found[i * len(found) // n] for i in range(n)]
        left -= n
    return chosen
