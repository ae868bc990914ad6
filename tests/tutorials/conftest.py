"""The tutorials set what belongs to a process, as a program may; the tests after theirs get torch's settings back."""

import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def settings_of_the_process():
    """`train` of train.py and distributed.py flushes numbers near 0, which would change what later tests compute."""
    flushed, threads = (torch.tensor(1e-40) * 1).item() == 0, torch.get_num_threads()
    yield
    torch.set_flush_denormal(flushed)
    torch.set_num_threads(threads)
