"""What a user reads when memory is full; tests/cuda has the run that survives it, on a CPU and on a GPU."""

import pytest
import torch

from foundry.config import FoundryError, Runtime
from foundry.training.out_of_memory import out_of_memory_errors

CUDA = (
    "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.18 GiB of which 10.56 GiB is "
    "free.\nOf the allocated memory 60.00 GiB is allocated by PyTorch, and 1.00 GiB is reserved by PyTorch but "
    "unallocated. If reserved but unallocated memory is large try setting PYTORCH_CUDA_ALLOC_CONF=..."
)


def message(error, runtime, rows=8):
    with pytest.raises(FoundryError) as e, out_of_memory_errors(runtime, rows, 1024):
        raise error
    return str(e.value)


def test_the_message_says_what_was_seen_and_names_every_key_that_can_be_lowered():
    said = message(torch.OutOfMemoryError(CUDA), Runtime(loss_chunk=2048))
    assert said.startswith(
        "out of memory with 8 x 1024 tokens in a forward pass: CUDA out of memory. Tried to allocate"
    )
    assert "of which 10.56 GiB is free. Of the allocated" in said and "ALLOC_CONF" not in said and "\n" not in said
    assert "Lower runtime.micro_batch_tokens (now 8192) to 4096, or set runtime.recompute: true, or lower " in said
    assert "runtime.loss_chunk (now 2048), or divide the model over several GPUs (runtime.parallel: fsdp): none" in said
    assert said.endswith("The same command then resumes from the last checkpoint")


def test_what_cannot_be_lowered_any_more_is_not_advised():
    said = message(torch.OutOfMemoryError(CUDA), Runtime(recompute=True, loss_chunk=256), rows=1)
    assert "Divide the model over several GPUs" in said
    assert all(key not in said for key in ("micro_batch_tokens", "recompute", "loss_chunk"))


def test_a_cpu_says_it_in_other_words_and_other_errors_stay_as_they_are():
    with pytest.raises(FoundryError, match=r"DefaultCPUAllocator: .*you tried to allocate 4503599627370496 bytes"):
        with out_of_memory_errors(Runtime(), 8, 1024):
            torch.empty(2**52, dtype=torch.uint8)
    assert "MPS backend" in message(RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)."), Runtime())
    for error in (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("x"), FoundryError("y")):
        with pytest.raises(type(error), match=str(error)), out_of_memory_errors(Runtime(), 8, 1024):
            raise error
