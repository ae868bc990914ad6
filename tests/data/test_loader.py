"""Shards and loader: the batch of step N is a pure function; every window exactly once an epoch; damage is refused."""

import json
import shutil

import numpy as np
import pytest
import torch

from foundry import DataLoader
from foundry.config import DataError, Shard
from foundry.data.order import key, permute
from foundry.data.shards import Shards, read_clean, write_shards


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 4097])
def test_the_order_is_a_bijection(n):
    places = permute(np.arange(n), n, key(1, 0))
    assert sorted(places.tolist()) == list(range(n))


def test_another_epoch_and_another_seed_are_another_order():
    orders = [permute(np.arange(1000), 1000, key(s, e)).tolist() for s, e in ((1, 0), (1, 1), (2, 0))]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    # Not a rotation or another simple pattern: neighbours land far apart.
    assert 200 < np.abs(np.diff(orders[0])).mean() < 450


def test_order_works_for_numbers_beyond_32_bits():
    n = 2**40 + 12345
    i = np.array([0, 1, n - 1, 2**39])
    places = permute(i, n, key(3))
    assert len(set(places.tolist())) == 4 and places.min() >= 0 and places.max() < n


def test_a_batch_is_a_pure_function_of_the_step(shards):
    one, two = DataLoader(shards, 4, 32, seed=5), DataLoader(shards, 4, 32, seed=5)
    forward = [one.batch(s) for s in range(12)]
    for s in reversed(range(12)):  # another instance, the other way round
        assert all(torch.equal(a, b) for a, b in zip(forward[s], two.batch(s), strict=True))
    assert not torch.equal(forward[0][0], DataLoader(shards, 4, 32, seed=6).batch(0)[0])


def test_targets_are_the_tokens_one_further_in_the_stream(shards):
    loader = DataLoader(shards, 4, 32)
    tokens, targets = loader.batch(3)
    assert tokens.dtype == torch.int64 and tokens.shape == targets.shape == (4, 32)
    assert torch.equal(tokens[:, 1:], targets[:, :-1])
    stream = np.concatenate(loader._segments)
    for row, start in zip(tokens, loader.positions(3), strict=True):
        assert row.tolist() == np.take(stream, np.arange(start, start + 32), mode="wrap").tolist()


def test_each_window_is_read_exactly_once_an_epoch_and_epochs_differ(shards):
    loader = DataLoader(shards, 1, 32)
    n = loader.windows
    epochs = [[int(loader.positions(s)[0]) for s in range(e * n, (e + 1) * n)] for e in range(3)]
    for starts in epochs:
        covered = np.concatenate([(np.arange(32) + s) % loader.tokens_per_epoch for s in starts])
        assert len(np.unique(covered)) == len(covered) == n * 32 > loader.tokens_per_epoch - 32
    assert epochs[0] != epochs[1] and sorted(epochs[0]) != sorted(epochs[1])


def test_the_global_batch_is_the_same_for_every_number_of_ranks(shards):
    whole = DataLoader(shards, 8, 16).batch(7)[0]
    for world in (2, 4, 8):
        parts = [DataLoader(shards, 8, 16, rank=r, world_size=world).batch(7)[0] for r in range(world)]
        assert torch.equal(torch.cat(parts), whole)


def test_a_repeated_source_counts_twice_an_epoch(shards):
    index = Shards(shards, "train").index["splits"]["train"]
    by = {s["source"]: 0 for s in index["shards"]}
    for s in index["shards"]:
        by[s["source"]] += s["tokens"]
    assert DataLoader(shards, 1, 32).tokens_per_epoch == by["one"] + 2 * by["two"] == index["epoch_tokens"]


def test_shards_hold_every_document_with_its_raw_bytes(shards, clean, tokenizer):
    for split in ("train", "val", "test"):
        texts = [r["text"] for rows in read_clean(clean / split, ["text"]) for r in rows]
        got = list(Shards(shards, split).documents())
        assert [tokenizer.decode(t.tolist()) for t, _, _ in got] == texts
        assert [b for _, b, _ in got] == [len(t.encode()) for t in texts]
        assert all(t[0] == 1 and t[-1] == 2 for t, _, _ in got)


def test_tokens_are_mapped_not_copied(shards):
    tokens = Shards(shards, "train").tokens[0]
    assert tokens.dtype == np.uint16 and not tokens.flags.owndata and not tokens.flags.writeable


def test_writing_again_gives_the_same_bytes(shards, clean, tokenizer, tmp_path):
    write_shards(clean, tokenizer, Shard(tokens_per_shard=2048, repeats={"two": 2}), tmp_path / "s")
    files = sorted(p.relative_to(tmp_path / "s") for p in (tmp_path / "s").rglob("*") if p.is_file())
    assert len(files) > 4
    assert all((tmp_path / "s" / f).read_bytes() == (shards / f).read_bytes() for f in files)


def test_a_flipped_bit_in_a_shard_is_refused(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "s")
    path = copy / "train" / "shard-00001.arrow"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"shard-00001.arrow was changed (?s:.*)dvc checkout"):
        DataLoader(copy, 4, 32)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        DataLoader(copy, 4, 32)


def test_an_index_of_another_format_is_refused(shards, tmp_path):
    copy = shutil.copytree(shards, tmp_path / "s")
    index = json.loads((copy / "index.json").read_text())
    (copy / "index.json").write_text(json.dumps({**index, "format": 99}))
    with pytest.raises(DataError, match="format 99"):
        Shards(copy, "train")
    (copy / "index.json").unlink()
    with pytest.raises(DataError, match="dvc repro shard"):
        Shards(copy, "train")


def test_fewer_tokens_than_one_batch_is_told_with_the_numbers(shards):
    with pytest.raises(DataError, match=r"holds [\d,]+ tokens, fewer than one batch of 4096 x 32"):
        DataLoader(shards, 4096, 32)
    with pytest.raises(ValueError, match="multiple of world_size"):
        DataLoader(shards, 3, 32, world_size=2)
