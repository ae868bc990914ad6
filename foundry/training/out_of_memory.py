"""What a user reads when the memory of the device is not enough for a step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from foundry.config import FoundryError, Runtime


@contextmanager
def out_of_memory_errors(runtime: Runtime, rows: int, seq_len: int) -> Iterator[None]:
    """Turns what torch raises in the block when memory is full into a `FoundryError` that names what to lower.

    Args:
        rows: sequences of a forward pass.
        seq_len: their tokens.

    Raises:
        FoundryError: if an allocation failed. Checkpoints are as they were.
    """
    try:
        yield
    except RuntimeError as e:
        # Only CUDA's errors have a type of their own (torch 2.13); those of a CPU and of MPS have their words.
        if not isinstance(e, torch.OutOfMemoryError) and not any(words in str(e) for words in _WORDS):
            raise
        raise FoundryError(
            f"out of memory with {rows} x {seq_len} tokens in a forward pass: {_first_sentences(str(e))} "
            f"{_advice(runtime, rows, seq_len)} The same command then resumes from the last checkpoint"
        ) from None


_WORDS = ("DefaultCPUAllocator", "MPS backend out of memory")


def _first_sentences(text: str) -> str:
    """What was asked for and what was free, without torch's own advice on its allocator."""
    return " ".join(text.split("If reserved but")[0].split())[:400].rstrip(".") + "."


def _advice(runtime: Runtime, rows: int, seq_len: int) -> str:
    lower = [f"lower runtime.micro_batch_tokens (now {rows * seq_len}) to {rows // 2 * seq_len}"] if rows > 1 else []
    if not runtime.recompute:
        lower.append("set runtime.recompute: true")
    if runtime.loss_chunk > 256:
        lower.append(f"lower runtime.loss_chunk (now {runtime.loss_chunk})")
    lower.append("divide the model over several GPUs (runtime.parallel: fsdp)")
    text = ", or ".join(lower)
    return f"{text[0].upper()}{text[1:]}: none of them changes the run's identity."
