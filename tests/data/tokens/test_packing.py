"""Mixture and packing: exact in every epoch, nothing lost or read twice, the same for every number of ranks."""

import hashlib
import tempfile
from collections import Counter
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from foundry import DataLoader
from foundry.config import DataError
from foundry.data.tokens.index import ShardEntry, ShardIndex, SplitEntry
from foundry.data.tokens.mixture import Mixture
from foundry.data.tokens.packing import cut_documents, make_layout, pack_best_fit
from foundry.data.tokens.shards import Shards
from foundry.utils.files import sha256_file
from foundry.utils.targets import IGNORE

WAYS = ("cut", "best_fit", "document")
QUICK = settings(max_examples=20, deadline=None)


def open_shards(sources, weights=None):
    """Shards of {source: [lengths of the texts of each shard]}; every text token is a number of its own, from 10."""
    with tempfile.TemporaryDirectory() as folder:  # the mapped files exist until they are closed
        return write_and_open(Path(folder), sources, weights or {})


def write_and_open(folder, sources, weights):
    entries, number = [], 10
    (folder / "train").mkdir()
    for source, shards in sources.items():
        for lengths in shards:
            documents = []
            for n in lengths:
                documents.append([1, *range(number, number + n), 2])
                number += n
            path = folder / "train" / f"shard-{len(entries):05d}.arrow"
            table = pa.table(
                {
                    "tokens": pa.array(documents, pa.list_(pa.uint32())),
                    "n_bytes": pa.array([0] * len(documents), pa.int64()),
                }
            )
            batch = table.combine_chunks().to_batches()[0]
            with pa.OSFile(str(path), "wb") as f, pa.ipc.new_file(f, batch.schema) as writer:
                writer.write_batch(batch)
            n, tokens, weight = len(documents), sum(map(len, documents)), weights.get(source, 1)
            known = {"file": path.name, "sha256": sha256_file(path), "source": source, "weight": weight}
            entries.append(ShardEntry(**known, documents=n, tokens=tokens, bytes=0))
    split = SplitEntry(documents=0, tokens=0, bytes=0, epoch_tokens=0, shards=entries)
    ShardIndex(dtype="uint32", vocab_size=1, tokenizer_sha256="", splits={"train": split}).write(folder)
    return Shards(folder, "train")


def read_epochs(loader, epochs):
    """Tokens and targets of complete epochs; loaders have a batch size of 1."""
    out = [loader.batch(s) for s in range(epochs * loader.rows_per_epoch)]
    return torch.cat([x for x, _ in out]), torch.cat([y for _, y in out])


def document_pairs(shards):
    """Every (token, next token) inside a document, how often it occurs."""
    return Counter((int(a), int(b)) for tokens in _documents(shards) for a, b in pairwise(tokens))


def _documents(shards):
    for tokens, offsets in zip(shards.tokens, shards.offsets, strict=True):
        for a, b in pairwise(offsets):
            yield tokens[a:b]


lengths = st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=12), min_size=1, max_size=3)


# the mixture


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1, 1.5, 2, 2.75])), min_size=1, max_size=4
    )
)
@QUICK
def test_each_source_gives_exactly_its_share_to_every_epoch(parts):
    mixture = Mixture([n for n, _ in parts], [w for _, w in parts])
    assert mixture.size == sum(round(n * w) for n, w in parts)
    for epoch in range(5):
        starts, sources, firsts = mixture.slices(epoch)
        assert starts[0] == 0 and starts[-1] == mixture.size and (np.diff(starts) > 0).all()
        items = Counter()
        for s, first, n in zip(sources, firsts, np.diff(starts), strict=True):
            assert first >= 0 and first + n <= parts[s][0]
            items.update((int(s), int(i)) for i in range(first, first + n))
        for s, (n, w) in enumerate(parts):
            counts = [items[s, i] for i in range(n)]
            assert sum(counts) == round(n * w)
            assert max(counts, default=0) - min(counts, default=0) <= 1  # copies, and one slice


@pytest.mark.parametrize("weight", [Fraction(1, 4), Fraction(3, 4), Fraction(7, 4), Fraction(2)])
def test_over_some_epochs_every_item_of_a_source_is_read_equally_often(weight):
    mixture, items = Mixture([40], [float(weight)]), Counter()
    for epoch in range(weight.denominator):
        starts, _, firsts = mixture.slices(epoch)
        items.update(i for first, n in zip(firsts, np.diff(starts), strict=True) for i in range(first, first + n))
    assert set(items.values()) == {weight.numerator} and len(items) == 40


# cut


@given(lengths, lengths, st.sampled_from([1, 2, 5, 16]), st.sampled_from([1, 2, 0.5, 1.5]))
@QUICK
def test_cut_reads_the_stream_of_the_epoch_and_its_targets_are_the_next_tokens(one, two, seq_len, weight):
    shards = open_shards({"one": one, "two": two}, {"two": weight})
    source = {
        s: np.concatenate([t for t, i in zip(shards.tokens, shards.entries, strict=True) if i.source == s])
        for s in ("one", "two")
    }
    n = len(source["two"])
    per_epoch = round(n * weight)
    if len(source["one"]) + per_epoch < seq_len:
        return
    loader = DataLoader(shards, 1, seq_len)
    for epoch in range(3):
        rest = per_epoch % n
        two_now = np.concatenate(
            [*[source["two"]] * (per_epoch // n), np.take(source["two"], np.arange(rest) + epoch * rest, mode="wrap")]
        )
        stream = np.concatenate([source["one"], two_now])
        assert len(stream) == loader.tokens_per_epoch
        covered = []
        for step in range(epoch * loader.rows_per_epoch, (epoch + 1) * loader.rows_per_epoch):
            tokens, targets = loader.batch(step)
            start = int(loader._layout.starts(*loader.samples(step)[0])[0])
            assert tokens[0].tolist() == np.take(stream, np.arange(start, start + seq_len), mode="wrap").tolist()
            assert (
                targets[0].tolist() == np.take(stream, np.arange(start + 1, start + seq_len + 1), mode="wrap").tolist()
            )
            covered += [(start + i) % len(stream) for i in range(seq_len)]
        assert len(set(covered)) == len(covered) > len(stream) - seq_len


# packing


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(40, 64))
@QUICK
def test_best_fit_is_best_fit_decreasing(sizes, capacity):
    """Compared with the definition, one span after another."""
    rows = pack_best_fit(np.array(sizes, np.int64), capacity)
    left = []
    for size in sorted(sizes, reverse=True):
        fits = [r for r in range(len(left)) if left[r] >= size]
        best = min(fits, key=lambda r: left[r]) if fits else len(left)
        if not fits:
            left.append(capacity)
        left[best] -= size
    seen = np.bincount(rows, weights=sizes, minlength=len(left)).astype(int) if sizes else []
    assert sorted(capacity - n for n in seen) == sorted(left)
    assert len(set(rows.tolist())) == len(left)


@given(lengths, st.integers(1, 20))
@QUICK
def test_spans_cover_every_document(shards, seq_len):
    offsets = np.cumsum([0, *(n + 2 for n in shards[0])])
    first, places = cut_documents(offsets.astype(np.int32), seq_len)
    inputs = [i for a, n in zip(first, places, strict=True) for i in range(a, a + n)]
    assert inputs == [i for a, b in pairwise(offsets) for i in range(a, b - 1)]
    assert places.min() >= 1 and places.max() <= seq_len


@pytest.mark.parametrize("way", ["best_fit", "document"])
@given(one=lengths, two=lengths, seq_len=st.sampled_from([1, 3, 8, 40]))
@QUICK
def test_packing_reads_every_token_of_every_document_once_per_epoch(way, one, two, seq_len):
    shards = open_shards({"one": one, "two": two})
    loader = DataLoader(shards, 1, seq_len, packing=way)
    orders = []
    for epoch in range(2):
        steps = range(epoch * loader.rows_per_epoch, (epoch + 1) * loader.rows_per_epoch)
        rows = [loader.batch(s) for s in steps]
        pairs = Counter((int(a), int(b)) for x, y in rows for a, b in zip(x[0], y[0], strict=True) if b != IGNORE)
        assert pairs == document_pairs(shards)
        orders.append([x[0].tolist() for x, _ in rows])
        places = sum(x.numel() for x, _ in rows)
        assert places == loader.tokens_per_epoch
        assert loader.padding == pytest.approx(1 - sum(pairs.values()) / places)
    assert sorted(orders[0]) == sorted(orders[1])


@pytest.mark.parametrize("way", ["best_fit", "document"])
@given(one=lengths, seq_len=st.sampled_from([3, 8, 40]))
@QUICK
def test_documents_that_fit_are_never_cut(way, one, seq_len):
    shards = open_shards({"one": one})
    loader = DataLoader(shards, 1, seq_len, packing=way)
    rows = [loader.batch(s) for s in range(loader.rows_per_epoch)]
    lines = [" ".join(map(str, [*x[0].tolist(), int(y[0][y[0] != IGNORE][-1])])) for x, y in rows]
    for document in _documents(shards):
        if len(document) - 1 <= seq_len and len(document) > 2:
            inputs = f" {' '.join(map(str, document[:-1].tolist()))} "
            assert sum(f" {line} ".count(inputs) for line in lines) == 1
    if way == "document":
        assert all((x[0] == 1).sum() <= 1 for x, _ in rows)


@pytest.mark.parametrize("way", ["best_fit", "document"])
def test_weights_count_rows_of_a_packed_source(way):
    shards = open_shards({"one": [[7] * 20], "two": [[7] * 40]}, {"two": 0.25})
    loader = DataLoader(shards, 1, 8, packing=way)
    assert loader.rows_per_epoch == 30
    seen = Counter(read_epochs(loader, 4)[0].flatten().tolist())
    assert all(seen[t] == (4 if t < 150 else 1) for t in range(10, 430)) and len(seen) == 421  # and the begin symbol


# boundaries


@pytest.mark.parametrize("way", WAYS)
@given(one=lengths, two=lengths, seq_len=st.sampled_from([2, 8, 40]))
@QUICK
def test_segments_and_positions_follow_the_documents(way, one, two, seq_len):
    shards = open_shards({"one": one, "two": two}, {"two": 0.75})
    if sum(e.tokens for e in shards.entries) < 2 * seq_len:
        return
    loader = DataLoader(shards, 1, seq_len, packing=way)
    following = {(a, b) for a, b in document_pairs(shards)}
    for step in range(min(60, 2 * loader.rows_per_epoch)):
        x, y = (t[0].tolist() for t in loader.batch(step))
        segments, positions = loader.batch_documents(step)
        assert segments.dtype == positions.dtype == torch.int32 and segments.shape == positions.shape == (1, seq_len)
        segments, positions = segments[0].tolist(), positions[0].tolist()
        expected, place = 0, 0
        for i in range(seq_len):
            if way != "cut" and y[i] == IGNORE:
                assert segments[i] == -1 and positions[i] == 0
                assert set(y[i:]) == {IGNORE}
                break
            if i and (x[i] == 1 or (x[i - 1], x[i]) not in following):
                expected, place = expected + 1, 0
            assert (segments[i], positions[i]) == (expected, place)
            place += 1


# the laws of the loader, in every way of packing


@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    return open_shards(
        {
            "one": [rng.integers(1, 60, 50).tolist(), rng.integers(1, 60, 30).tolist()],
            "two": [rng.integers(1, 60, 40).tolist()],
        },
        {"one": 1.5},
    )


@pytest.mark.parametrize("way", WAYS)
def test_the_global_batch_is_equal_for_1_2_3_8_ranks(many, way):
    for step in (0, 1, 17):
        complete = DataLoader(many, 24, 16, packing=way)
        for world in (1, 2, 3, 8):
            parts = [DataLoader(many, 24, 16, rank=r, world_size=world, packing=way) for r in range(world)]
            for i in (0, 1):
                assert torch.equal(torch.cat([p.batch(step)[i] for p in parts]), complete.batch(step)[i])
                assert torch.equal(
                    torch.cat([p.batch_documents(step)[i] for p in parts]), complete.batch_documents(step)[i]
                )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("gathered", [1, 2**9, 2**18])
def test_seeking_a_step_equals_iterating_to_it_however_much_is_gathered(many, way, gathered, monkeypatch):
    monkeypatch.setattr("foundry.data.tokens.loader.GATHERED_TOKENS", gathered)
    loader = DataLoader(many, 4, 16, packing=way)
    walked = [loader.batch(s) for s in range(3 * loader.rows_per_epoch // 4)]
    monkeypatch.setattr("foundry.data.tokens.loader.GATHERED_TOKENS", 2**12)
    for step in (len(walked) - 1, 5, 40, 0):
        assert all(
            torch.equal(a, b)
            for a, b in zip(DataLoader(many, 4, 16, packing=way).batch(step), walked[step], strict=True)
        )


@pytest.mark.parametrize("way", WAYS)
def test_a_changed_batch_changes_no_other(many, way):
    loader = DataLoader(many, 4, 16, packing=way)
    before = [t.clone() for t in loader.batch(3)]
    for t in loader.batch(3):
        t.zero_()
    assert all(torch.equal(a, b) for a, b in zip(loader.batch(3), before, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_each_seed_and_each_epoch_has_its_own_order(many, way):
    first, second, other = (DataLoader(many, 1, 16, seed=s, packing=way) for s in (1, 1, 2))
    one, two = (torch.cat([first.batch(s)[0] for s in range(e * 40, e * 40 + 40)]) for e in (0, 1))
    assert torch.equal(one, torch.cat([second.batch(s)[0] for s in range(40)]))
    assert not torch.equal(one, two) and not torch.equal(one, torch.cat([other.batch(s)[0] for s in range(40)]))


def test_an_unknown_way_and_too_little_data_are_refused(many):
    with pytest.raises(DataError, match="cut, best_fit or document, got 'best'"):
        DataLoader(many, 1, 16, packing="best")
    with pytest.raises(DataError, match="fewer than one batch"):
        DataLoader(many, 1000, 16, packing="document")


@pytest.mark.parametrize("way", ["best_fit", "document"])
def test_training_divides_by_the_tokens_that_are_not_padding(shards, tmp_path, way):
    from foundry.config import ModelConfig, Runtime, TrainConfig
    from foundry.training import Trainer

    model = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=256)
    train = TrainConfig(
        steps=2, tokens_per_step=2048, warmup_steps=0, log_interval=1, eval_interval=2, eval_tokens=300, packing=way
    )
    runtime = Runtime(device="cpu", precision="float32", threads=1)
    trainer = Trainer.from_shards(model, train, shards, runtime=runtime, state=tmp_path / "at-once")
    padded = (trainer.loader.batch(0)[1] == IGNORE).float().mean()
    assert 0 < trainer.loader.padding < 1 and (way == "best_fit" or padded > 0.1)
    at_once = trainer.fit().curve
    assert at_once[0]["loss"] == pytest.approx(5.99, abs=0.1)  # ln V; divided by all places it would be smaller
    one_row = runtime.model_copy(update={"micro_batch_tokens": 256})
    cut = Trainer.from_shards(model, train, shards, runtime=one_row, state=tmp_path / "cut").fit().curve
    assert [r["loss"] for r in cut] == pytest.approx([r["loss"] for r in at_once], rel=1e-5)


@pytest.mark.parametrize(
    ("way", "digest"),
    [("cut", "4ca83d63df0c0d2a"), ("best_fit", "4f9d937735d4cc2a"), ("document", "e4db7ee17301fa36")],
)
def test_a_seed_gives_the_batches_that_it_always_gave(way, digest):
    """A fingerprint depends on seed and index, not on the code: the same one must always mean the same batches."""
    shards = open_shards({"a": [[3, 40, 7], [1, 12]], "b": [[9, 9, 25, 2], [5]]}, {"a": 1.5, "b": 2})
    loader = DataLoader(shards, batch_size=3, seq_len=8, seed=11, packing=way)
    seen = hashlib.sha256()
    for step in range(2 * loader.rows_per_epoch):
        for part in (*loader.batch(step), *loader.batch_documents(step)):
            seen.update(np.asarray(part).astype("<i8").tobytes())
    assert seen.hexdigest()[:16] == digest
    assert (loader.padding == 0) == (way == "cut")


@pytest.mark.parametrize("way", WAYS)
def test_the_contents_of_a_step_are_where_its_tokens_are(way):
    """Read from the shards, across documents, shards, sources and the end of an epoch's stream."""
    shards = open_shards({"a": [[3, 40, 7], [1, 12]], "b": [[9, 9, 25, 2], [5]]}, {"a": 1.5, "b": 2})
    loader = DataLoader(shards, batch_size=3, seq_len=8, seed=11, packing=way)
    several = 0
    for step in range(3 * loader.rows_per_epoch):
        x, y = loader.batch(step)
        for row, targets, spans in zip(x, y, loader.contents(step), strict=True):
            several += len(spans) > 1
            read = np.concatenate([shards.tokens[shard][at : at + n] for shard, at, n in spans])
            assert len(read) == 8 or (targets[len(read) :] == IGNORE).all()
            assert row[: len(read)].tolist() == read.tolist()
    assert several > 10 or way == "document"


@QUICK
@given(st.lists(st.integers(1, 24), max_size=80))
@example([21, 17, 4, 3, 3])  # two rows come to the same room in different steps
def test_each_piece_goes_where_the_least_room_is_left(lengths):
    """Best-fit decreasing, one piece after the other: rows of equal room are alike, so the filled rows are compared."""
    room = []
    for n in sorted(lengths, reverse=True):
        fitting = [i for i, left in enumerate(room) if left >= n]
        if fitting:
            room[min(fitting, key=lambda i: room[i])] -= n
        else:
            room.append(24 - n)
    rows = pack_best_fit(np.array(lengths, np.int64), 24)
    filled = np.bincount(rows, weights=lengths) if lengths else np.empty(0)
    assert sorted(filled.tolist()) == sorted(24 - left for left in room)


def test_the_runs_of_four_epochs_at_most_are_kept_in_memory():
    layout = make_layout("cut", open_shards({"a": [[5, 7, 9], [8]], "b": [[6, 6]]}, {"b": 2}), 4, 1)
    samples = np.arange(layout.samples)
    first, kept = layout.read(0, samples), []
    for epoch in range(1, 10):
        layout.read(epoch, samples)
        kept.append(len(layout._epochs))
    assert kept[:3] == [2, 3, 4] and max(kept) == 4
    assert all(np.array_equal(a, b) for a, b in zip(first, layout.read(0, samples), strict=True))
    for first_of_run, _, _ in layout._epochs.values():
        assert np.diff(first_of_run).min() > 0  # no run is empty


@pytest.mark.parametrize("packing", WAYS)
def test_one_shard_is_enough(packing):
    layout = make_layout(packing, open_shards({"a": [[5, 7, 9]]}), 4, 1)
    tokens, _ = layout.read(0, np.arange(layout.samples))
    assert layout.samples > 2 and tokens.dtype.kind in "iu" and tokens.shape == (layout.samples, 4)


@pytest.mark.parametrize("packing", ["best_fit", "document"])
def test_no_shards_are_no_samples(packing):
    layout = make_layout(packing, open_shards({}), 4, 1)
    assert layout.samples == layout.tokens_per_epoch == 0
