"""The batches of a run on the device of its model.

On a GPU the batch of the next step is read and copied while the device still computes the gradients of this one: it is
pinned in host memory and copied on a stream of its own. On a CPU a batch is read when its step begins, and so is one
that depends on the weights, which the step before it still has to change.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from foundry.training.protocols import Batch, Loader


class Batches:
    """Batches by their numbers, of which the next one may already be there.

    Args:
        documents: with the boundaries of the documents.

    Attributes:
        ahead: whether `prepare` copies a batch before it is needed.
    """

    def __init__(self, loader: Loader, device: torch.device, documents: bool) -> None:
        self.loader, self.device, self.documents = loader, device, documents
        self.ahead = device.type == "cuda" and not loader.follows_weights
        self._stream: torch.cuda.Stream | None = None
        self._next: tuple[int, Batch] | None = None

    def prepare(self, number: int) -> None:
        """Begins to copy a batch, if the device computes by itself; does not wait for it."""
        if self.ahead:
            self._next = number, self._read(number)

    def take(self, number: int) -> Batch:
        """The batch of this number, whichever was prepared: what follows on the current stream may read it."""
        ready, self._next = self._next, None
        batch = ready[1] if ready and ready[0] == number else self._read(number)
        if self._stream:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._stream)
            for tensor in batch:
                if tensor is not None:
                    tensor.record_stream(current)  # its memory belongs to the other stream
        return batch

    def _read(self, number: int) -> Batch:
        tensors = self.loader.tensors(number, self.documents)
        if self.device.type != "cuda":
            return _each(tensors, lambda t: t.to(self.device))
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(self._stream):
            # The allocator of pinned memory reuses a block only after the copy from it is done.
            return _each(tensors, lambda t: t.pin_memory().to(self.device, non_blocking=True))


def _each(batch: Batch, function: Callable[[Tensor], Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(t if t is None else function(t) for t in batch)
