"""Batches on the device of the model: whichever was prepared, a step gets the batch of its number."""

import pytest
import torch

from foundry.training.prefetch import Batches


class Loader:
    """Batch N has N in every place; what was read is kept."""

    follows_weights = False
    widths_vary = False

    def __init__(self):
        self.read = []

    def tensors(self, number, documents):
        self.read.append(number)
        rows = torch.full((2, 3), number)
        return rows, rows + 1, rows % 2 if documents else None


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("documents", [False, True])
def test_a_step_gets_the_batch_of_its_number_whatever_was_prepared(ahead, documents):
    batches = Batches(Loader(), torch.device("cpu"), documents)
    assert not batches.ahead  # a CPU computes nothing while the host reads
    batches.ahead = ahead
    prepared = {0: 1, 1: 2, 2: 3, 7: 8}  # after batch 2 come 3 to 6, which the run skips
    for number in (0, 1, 2, 7, 8):
        expected = Loader().tensors(number, documents)
        got = batches.take(number)
        assert len(got) == 3 and (got[2] is None) is not documents
        assert all(b is None or torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        if number in prepared:
            batches.prepare(prepared[number])
    assert batches.loader.read == ([0, 1, 2, 3, 7, 8] if ahead else [0, 1, 2, 7, 8])


def test_a_batch_is_given_once():
    """It is not kept while the next one is made: batches may be large."""
    batches = Batches(Loader(), torch.device("cpu"), False)
    batches.ahead = True
    batches.prepare(4)
    batches.take(4)
    batches.take(4)
    assert batches.loader.read == [4, 4]


@pytest.mark.parametrize(("device", "follows", "ahead"), [("cuda", False, True), ("cuda", True, False)])
def test_a_batch_that_depends_on_the_weights_is_not_read_ahead(device, follows, ahead):
    """On a GPU the next batch would be made while the weights of its step do not exist yet."""
    loader = Loader()
    loader.follows_weights = follows
    batches = Batches(loader, torch.device(device), False)
    assert batches.ahead is ahead
    if follows:
        batches.prepare(1)
        assert not loader.read
