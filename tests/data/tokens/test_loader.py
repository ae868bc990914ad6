"""The loader: the batch of a step is a pure function; an epoch reads each window exactly once. Packing:
test_packing.py.
"""

import numpy as np
import pytest
import torch

from foundry import DataLoader
from foundry.config import ConfigError, DataError
from foundry.data.tokens import loader
from foundry.data.tokens.order import permute
from foundry.data.tokens.shards import Shards
from foundry.utils.splitmix import key, mix


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4097])
def test_the_order_is_a_bijection(n):
    places = permute(np.arange(n), n, key(1, 0))
    assert sorted(places.tolist()) == list(range(n))


def test_another_epoch_and_another_seed_are_another_order():
    orders = [permute(np.arange(1000), 1000, key(s, e)).tolist() for s, e in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # Not a rotation or another simple pattern: neighbours are far apart.
    assert 200 < np.abs(np.diff(orders[0])).mean() < 450


GOLDEN = 0x9E3779B97F4A7C15
M64 = 2**64


def test_the_mixer_is_that_of_splitmix64():
    """The generator's published outputs for the seed 1234567: its state grows by the golden gamma before each."""
    published = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(mix((1234567 + i * GOLDEN) % M64)) for i in range(5)] == published
    assert mix(np.array([0], np.uint64)).tolist() == [0xE220A8397B1DCDAF]


def reference_order(i, n, k):
    """The same network in plain integers: four rounds over two halves, repeated until the number is in [0, n)."""
    bits = max(1, -(-(n - 1).bit_length() // 2))
    mask = 2**bits - 1
    while True:
        left, right = i >> bits, i & mask
        for r in range(1, 5):
            left, right = right, left ^ (int(mix(right ^ int(mix(k ^ r)))) & mask)
        i = left << bits | right
        if i < n:
            return i


@pytest.mark.parametrize("n", [1, 2, 5, 16, 17, 1000])
def test_the_order_is_that_of_the_network_in_every_version(n):
    """A later version that resumes a run needs the same order: it is fixed here, not just any bijection."""
    for k in (key(1, 0), key(7, 3, 2)):
        expected = [reference_order(i, n, k) for i in range(n)]
        assert permute(np.arange(n), n, k).tolist() == expected
    assert key(7, 3) == int(mix(int(mix(7)) ^ int(mix(3)))) and key(7) == int(mix(7))


def test_order_works_for_numbers_beyond_32_bits():
    n = 2**40 + 12345
    i = np.array([0, 1, n - 1, 2**39])
    places = permute(i, n, key(3))
    assert len(set(places.tolist())) == 4 and places.min() >= 0 and places.max() < n


def test_a_batch_is_a_pure_function_of_the_step(shards):
    one, two = DataLoader(shards, 4, 32, seed=5), DataLoader(shards, 4, 32, seed=5)
    forward = [one.batch(s) for s in range(12)]
    for s in reversed(range(12)):  # another instance, in reverse order
        assert all(torch.equal(a, b) for a, b in zip(forward[s], two.batch(s), strict=True))
    assert not torch.equal(forward[0][0], DataLoader(shards, 4, 32, seed=6).batch(0)[0])


def starts(loader, step):
    """Where the rows of a step begin in the circular stream of the epoch."""
    return np.concatenate([loader._layout.starts(epoch, samples) for epoch, samples in loader.samples(step)])


def test_targets_are_the_next_tokens_of_the_stream(shards):
    loader = DataLoader(shards, 4, 32)
    tokens, targets = loader.batch(3)
    assert tokens.dtype == torch.int64 and tokens.shape == targets.shape == (4, 32)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    one, two = (
        np.concatenate([t for t, i in zip(loader.shards.tokens, loader.shards.entries, strict=True) if i.source == s])
        for s in ("one", "two")
    )
    stream = np.concatenate([one, two, two])
    for row, start in zip(tokens, starts(loader, 3), strict=True):
        assert row.tolist() == np.take(stream, np.arange(start, start + 32), mode="wrap").tolist()


def test_each_window_is_read_exactly_once_per_epoch_and_epochs_differ(shards):
    loader = DataLoader(shards, 1, 32)
    n = loader.rows_per_epoch
    epochs = [[int(starts(loader, s)[0]) for s in range(e * n, (e + 1) * n)] for e in range(3)]
    for begins in epochs:
        covered = np.concatenate([(np.arange(32) + s) % loader.tokens_per_epoch for s in begins])
        assert len(np.unique(covered)) == len(covered) == n * 32 > loader.tokens_per_epoch - 32
    assert epochs[0] != epochs[1] and sorted(epochs[0]) != sorted(epochs[1])


def test_the_global_batch_is_the_same_for_every_number_of_ranks(shards):
    complete = DataLoader(shards, 8, 16).batch(7)[0]
    for world in (2, 4, 8):
        parts = [DataLoader(shards, 8, 16, rank=r, world_size=world).batch(7)[0] for r in range(world)]
        assert torch.equal(torch.cat(parts), complete)


def test_a_source_of_weight_two_is_read_twice_per_epoch(shards):
    train = Shards(shards, "train").index.splits["train"]
    tokens = {s: sum(e.tokens for e in train.shards if e.source == s) for s in ("one", "two")}
    assert DataLoader(shards, 1, 32).tokens_per_epoch == tokens["one"] + 2 * tokens["two"] == train.epoch_tokens


def test_fewer_tokens_than_one_batch_is_refused_with_the_numbers(shards):
    with pytest.raises(DataError, match=r"has [\d,]+ tokens, fewer than one batch of 4096 x 32"):
        DataLoader(shards, 4096, 32)
    with pytest.raises(ValueError, match="multiple of world_size"):
        DataLoader(shards, 3, 32, world_size=2)


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"batch_size": -4}, "batch_size"),
        ({"batch_size": 4.0}, "batch_size"),
        ({"seq_len": 0}, "seq_len"),
        ({"seq_len": -1}, "seq_len"),
        ({"seq_len": "32"}, "seq_len"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"seed": True}, "seed"),
        ({"world_size": 0}, "world_size"),
        ({"rank": 1}, "rank"),
    ],
)
@pytest.mark.parametrize("kind", [DataLoader, loader.DataLoader], ids=["public", "of shards"])
def test_a_number_out_of_its_range_is_named(shards, kind, change, name):
    with pytest.raises(ConfigError, match=name):
        kind(shards, **({"batch_size": 4, "seq_len": 32} | change))


def test_the_order_without_a_seed_is_that_of_seed_1(shards):
    assert all(kind(shards, 4, 32).seed == 1 for kind in (DataLoader, loader.DataLoader))


@pytest.mark.parametrize("step", [-1, -(2**40), 2**62])
def test_a_step_that_no_run_has_is_refused(shards, step):
    loader = DataLoader(shards, 4, 32)
    loader.batch(0)
    for call in (loader.batch, loader.batch_documents, loader.contents):
        with pytest.raises(ConfigError, match="a step must be from 0"):
            call(step)
