"""Bits per byte: raw bytes, every token once, an interval that covers."""

import math
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from foundry.config import DataError, ModelConfig
from foundry.data.tokens.shards import Shards, read_clean
from foundry.evaluation.bits_per_byte import bits_per_byte, bits_per_byte_interval, perplexity, score
from foundry.evaluation.documents import held_out
from foundry.evaluation.held_out_scores import scored_text_sha256
from foundry.evaluation.intervals import ratio_interval, ratio_intervals
from foundry.models import MiniLLM
from foundry.utils.bootstrap import Interval


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


def test_scores_equal_those_of_one_document_at_a_time_without_padding_or_batches(model, shards):
    """The reference scores one window of one document at a time."""
    test = Shards(shards, "test")
    nats = []
    for tokens, _, _ in test.documents():
        ids = torch.from_numpy(tokens.astype(np.int64))[:-1]
        total = 0.0
        for start in range(0, len(ids) - 1, 16):
            begin = max(0, min(start, len(ids) - 1 - 16))  # the last window is full
            piece = ids[begin : begin + 17]
            with torch.no_grad():
                logits, _ = model.eval()(piece[None, :-1])
            paid = logits.double().log_softmax(-1)[0].gather(-1, piece[1:, None])
            total -= paid[start - begin :].sum().item()
        nats.append(total)
    scores = score(model, [t for t, _, _ in test.documents()], 16)
    np.testing.assert_allclose(scores.nats, nats, rtol=1e-5)
    assert scores.tokens.sum() == sum(len(t) - 2 for t, _, _ in test.documents())


@pytest.fixture(scope="module")
def documents(shards, clean):
    rows = [r for part in read_clean(clean / "test", ["doc_id", "text", "lang"]) for r in part]
    return held_out(Shards(shards, "test"), rows)


def test_bytes_are_counted_on_the_raw_text(model, documents, clean):
    raw = sum(len(r["text"].encode()) for rows in read_clean(clean / "test", ["text"]) for r in rows)
    scores = score(model, documents.tokens, 16)
    assert documents.n_bytes.sum() == raw
    assert bits_per_byte(scores.nats, documents.n_bytes) == pytest.approx(scores.nats.sum() / math.log(2) / raw)


def test_scoring_changes_neither_the_model_nor_the_random_numbers(model, documents):
    model.train()
    before, weights = torch.get_rng_state(), [p.clone() for p in model.parameters()]
    first = score(model, documents.tokens, 8)
    second = score(model, documents.tokens, 8)
    assert model.training and torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    assert (first.nats == second.nats).all()


@pytest.mark.parametrize("stride", [16, 8, 5])
def test_no_score_depends_on_the_batch_the_order_or_the_division_of_the_documents(model, documents, stride):
    whole = score(model, documents.tokens, stride)
    for rows in (1, 3, 64):
        got = score(model, documents.tokens, stride, rows=rows)
        np.testing.assert_allclose(got.nats, whole.nats, rtol=2e-6)
        assert (got.tokens == whole.tokens).all()
    order = np.random.default_rng(0).permutation(len(documents))
    shuffled = score(model, [documents.tokens[i] for i in order], stride)
    np.testing.assert_allclose(shuffled.nats, whole.nats[order], rtol=2e-6)
    ranks = [score(model, documents.tokens[r::3], stride) for r in range(3)]
    for r, part in enumerate(ranks):
        np.testing.assert_allclose(part.nats, whole.nats[r::3], rtol=2e-6)
    assert whole.tokens.sum() == sum(len(t) - 2 for t in documents.tokens)


def test_an_empty_split_and_a_split_of_other_text_are_refused(shards, clean):
    test = Shards(shards, "test")
    rows = [r for part in read_clean(clean / "test", ["doc_id", "text", "lang"]) for r in part]
    with pytest.raises(DataError, match=r"are not of the same documents \(16 and 15, 15 of 16 wanted"):
        held_out(test, rows[1:])
    test._batches, test.tokens, test.offsets, test.entries = [], [], [], []
    with pytest.raises(DataError, match=r"contains no document.*clean\.test_fraction"):
        held_out(test, [])


def test_perplexities_are_per_token_and_per_word(documents, model):
    scores = score(model, documents.tokens, 16)
    token = perplexity(scores.nats, scores.tokens, 200, 1)
    word = perplexity(scores.nats, documents.words, 200, 1)
    assert token.value == pytest.approx(math.exp(scores.nats.sum() / scores.tokens.sum()), rel=1e-4)
    words = sum(len(t.split()) for t in documents.texts)
    assert word.value == pytest.approx(math.exp(scores.nats.sum() / words), rel=1e-4)
    assert token.low < token.value < token.high < word.value


def test_ratios_of_columns_equal_those_of_each_column_by_itself_and_are_none_where_nothing_is_counted():
    rng = np.random.default_rng(0)
    above, below = rng.random((30, 3)), rng.random((30, 3))
    below *= 1e-3  # sums below 1 count, too
    below[:, 1] = 0
    got = ratio_intervals(above, below, 300, 7)
    assert got[1] is None
    for k in (0, 2):
        draws = np.random.default_rng(7)
        seen = [above[i, k].sum() / below[i, k].sum() for i in (draws.integers(0, 30, 30) for _ in range(300))]
        assert got[k].low == pytest.approx(np.percentile(seen, 2.5), abs=1e-4)
        assert got[k].high == pytest.approx(np.percentile(seen, 97.5), abs=1e-4)
        assert got[k].value == round(above[:, k].sum() / below[:, k].sum(), 4)
    alone = ratio_interval(above[:, 0], below[:, 0], 300, 7)
    assert alone.value == got[0].value == round(alone.value, 4)


def test_draws_in_which_nothing_is_counted_are_left_out_of_an_interval():
    above, below = np.full((3, 1), 5.0), np.array([[1.0], [0.0], [0.0]])
    got = ratio_intervals(above, below, 200, 3)[0]
    draws = np.random.default_rng(3)
    seen = [above[i].sum() / below[i].sum() for i in (draws.integers(0, 3, 3) for _ in range(200)) if below[i].sum()]
    assert len(seen) < 200
    assert got == Interval.rounded(15.0, *np.percentile(seen, (2.5, 97.5)), 4)


def test_a_95_percent_interval_covers_the_truth_in_about_95_percent_of_trials():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        n_bytes = rng.integers(100, 1000, 80)
        nats = n_bytes * rng.normal(1.0, 0.2, 80)
        got = bits_per_byte_interval(nats, n_bytes, 200, trial)
        hits += got.low <= 1.0 / math.log(2) <= got.high
    assert 180 <= hits <= 198  # 95 % of 200, within three standard errors for a percentile interval


def test_a_bounded_evaluation_takes_documents_evenly_by_their_bytes_only(model, documents, shards, clean):
    def rows():
        return (r for part in read_clean(clean / "test", ["doc_id", "text", "lang"]) for r in part)

    half = held_out(Shards(shards, "test"), rows(), (int(documents.n_bytes.sum()) + 1) // 2)
    assert half.doc_ids == documents.doc_ids[::2] and half.texts == documents.texts[::2]
    assert half.every == 2 and half.split == len(documents) == documents.split and documents.every == 1
    assert [t.tolist() for t in half.tokens] == [t.tolist() for t in documents.tokens[::2]]
    np.testing.assert_array_equal(half.n_bytes, documents.n_bytes[::2])
    nats = score(model, half.tokens, 16).nats
    np.testing.assert_allclose(nats, score(model, documents.tokens, 16).nats[::2], rtol=1e-6)
    assert held_out(Shards(shards, "test"), rows(), 10**9).doc_ids == documents.doc_ids
    assert scored_text_sha256(Shards(shards, "test"), half) != scored_text_sha256(Shards(shards, "test"), documents)


def test_nats_of_positions_do_not_depend_on_how_many_logits_exist_at_a_time(model):
    x, y = torch.randint(0, 400, (3, 16)), torch.randint(0, 400, (3, 16))
    y[1, 4:] = -100
    expected = model(x, y, reduction="none")[1]
    largest = []
    for chunk in (1, 7, 48, 1000):
        with torch.no_grad(), _largest_linear(largest):
            got = model.nats(x, y, chunk=chunk)
        assert got.shape == (3, 16) and (got[1, 4:] == 0).all()
        torch.testing.assert_close(got, expected)
    assert largest == [1, 7, 48, 48]


@contextmanager
def _largest_linear(seen):
    """Appends the most rows that the output head was given at a time."""
    inner, rows = F.linear, []

    def linear(x, weight, bias=None):
        if len(weight) == 400:
            rows.append(x.shape[0])
        return inner(x, weight, bias)

    with mock.patch("foundry.models.transformer.F.linear", linear):
        yield
    seen.append(max(rows))
