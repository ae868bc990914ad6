"""Bits per byte: raw bytes, every token once, an interval that covers, compressors that agree with themselves."""

import lzma
import math

import numpy as np
import pytest
import torch

from foundry.config import ModelConfig
from foundry.data.shards import Shards
from foundry.evaluation.baselines import baselines, ppmd_sizes
from foundry.evaluation.bits_per_byte import bits_per_byte, interval, score_split, summarize
from foundry.models import MiniLLM


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = MiniLLM(
        ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=32, max_seq_len=16)
    )
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.1)
    return model


def test_scores_equal_a_document_at_a_time_without_padding_or_batches(model, shards):
    """The slow and obvious way: one document, one window after the other."""
    test = Shards(shards, "test")
    nats = []
    for tokens, _, _ in test.documents():
        ids = torch.from_numpy(tokens.astype(np.int64))[:-1]
        total = 0.0
        for start in range(0, len(ids) - 1, 16):
            piece = ids[start : start + 17]
            with torch.no_grad():
                logits, _ = model.eval()(piece[None, :-1])
            total -= logits.double().log_softmax(-1)[0].gather(-1, piece[1:, None]).sum().item()
        nats.append(total)
    scores = score_split(model, test, 16)
    np.testing.assert_allclose(scores.nats, nats, rtol=1e-5)
    assert scores.tokens.sum() == sum(len(t) - 2 for t, _, _ in test.documents())


def test_bytes_are_those_of_the_raw_text(model, shards, clean):
    from foundry.data.shards import read_clean

    raw = sum(len(r["text"].encode()) for rows in read_clean(clean / "test", ["text"]) for r in rows)
    scores = score_split(model, Shards(shards, "test"), 16)
    assert scores.n_bytes.sum() == raw
    assert bits_per_byte(scores.nats, scores.n_bytes) == pytest.approx(scores.nats.sum() / math.log(2) / raw)


def test_scoring_changes_neither_the_model_nor_the_random_numbers(model, shards):
    model.train()
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    first = score_split(model, Shards(shards, "test"), 8)
    second = score_split(model, Shards(shards, "test"), 8)
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert (first.nats == second.nats).all()


def test_the_sum_over_sources_is_the_whole(model, shards):
    scores = score_split(model, Shards(shards, "test"), 16)
    report = summarize(scores, 200, 1)
    assert set(report["by_source"]) == {"one", "two"}
    assert sum(s["bytes"] for s in report["by_source"].values()) == report["bytes"]
    assert report == summarize(scores, 200, 1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        n_bytes = rng.integers(100, 1000, 80)
        nats = n_bytes * rng.normal(1.0, 0.2, 80)
        got = interval(nats, n_bytes, 200, trial)
        hits += got["low"] <= 1.0 / math.log(2) <= got["high"]
    assert 180 <= hits <= 198  # 95 % of 200, within three standard errors for a percentile interval


def test_compressors_gain_from_text_they_have_seen():
    rng = np.random.default_rng(1)
    words = [bytes(rng.integers(97, 123, 6).tolist()) for _ in range(300)]
    train = b" ".join(rng.choice(words, 4000).tolist())
    test = b" ".join(rng.choice(words, 500).tolist())
    got = baselines(train, test)
    assert set(got) == {"xz", "ppmd_order_6", "ppmd_order_8"}
    for sizes in got.values():
        assert 0 < sizes["given_train"] < 0.8 * sizes["alone"]
    assert got["xz"]["alone"] == round(8 * len(lzma.compress(test, preset=9 | lzma.PRESET_EXTREME)) / len(test), 4)


def test_ppmd_sizes_are_those_of_a_stream_that_decodes():
    import pyppmd

    data = b"the boy boiled the broth in the big pot " * 50
    encoder = pyppmd.Ppmd7Encoder(6, 1 << 20)
    packed = encoder.encode(data) + encoder.flush()
    assert pyppmd.Ppmd7Decoder(6, 1 << 20).decode(packed, len(data)) == data
    assert ppmd_sizes(b"", data, 6) == (len(packed), len(packed))
    with pytest.raises(ValueError, match="empty"):
        baselines(b"abc", b"")
