"""Scores of single tokens equal a plain computation; calibration of known cases; a model that looks ahead is found."""

import math
from itertools import pairwise
from unittest import mock

import numpy as np
import pytest
import torch
from scoring import tiny

from foundry.config import DataError
from foundry.evaluation import held_out_scores
from foundry.evaluation.bits_per_byte import Scores, score
from foundry.evaluation.leak_probe import probe_leaks
from foundry.evaluation.tokens import TokenScores, calibration, position_curve, score_overlapping, score_tokens
from foundry.utils.evaluation_report import PositionScore


def test_scores_of_tokens_equal_a_plain_computation(net, held):
    got, _ = score_tokens(net, held.tokens)
    seen, nats, best, right = [], [], [], []
    for d, tokens in enumerate(held.tokens):
        ids = torch.from_numpy(tokens.astype(np.int64))[:-1]
        for start in range(0, len(ids) - 1, 32):
            begin = max(0, min(start, len(ids) - 1 - 32))
            piece = ids[begin : begin + 33]
            p = net(piece[None, :-1])[0][0].double().softmax(-1).detach()
            for k in range(start - begin, len(piece) - 1):
                seen.append((d, k + 1))
                nats.append(-math.log(p[k, piece[k + 1]]))
                best.append(p[k].max().item())
                right.append(int(p[k].argmax()) == int(piece[k + 1]))
    order = np.lexsort((got.nats, got.seen, got.document))
    mine = sorted(zip(seen, nats, best, right, strict=True), key=lambda r: (*r[0], r[1]))
    assert [(int(got.document[i]), int(got.seen[i])) for i in order] == [r[0] for r in mine]
    np.testing.assert_allclose(got.nats[order], [r[1] for r in mine], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got.confidence[order], [r[2] for r in mine], rtol=1e-4)
    assert (got.right[order] == [r[3] for r in mine]).mean() > 0.999  # a tie may fall either way


def test_scores_of_documents_from_the_same_pass_equal_those_of_a_pass_of_their_own(net, held):
    _, scores = score_tokens(net, held.tokens)
    alone = score(net, held.tokens, 32)
    np.testing.assert_allclose(scores.nats, alone.nats, rtol=2e-6)
    assert (scores.tokens == alone.tokens).all()


@pytest.mark.parametrize(("context", "most"), [(32, 0.6), (7, 0.95), (2, 0.6)])
def test_windows_that_overlap_are_scored_as_if_nothing_was_known_but_only_where_they_see_more(context, most, held):
    model = tiny(max_seq_len=context)
    known, _ = score_tokens(model, held.tokens)
    rows = []
    with mock.patch.object(type(model), "hidden", autospec=True, side_effect=_counted(type(model).hidden, rows)):
        got = score_overlapping(model, held.tokens, known)
        fresh = sum(rows)
        rows.clear()
        expected = score(model, held.tokens, max(1, context // 2))
    np.testing.assert_allclose(got.nats, expected.nats, rtol=2e-6)
    assert (got.tokens == expected.tokens).all()
    assert fresh <= most * sum(rows)


def test_documents_of_one_window_are_not_scored_again(net, held):
    short = [t[:20] for t in held.tokens]
    known, scores = score_tokens(net, short)
    with mock.patch.object(type(net), "hidden", side_effect=AssertionError):
        got = score_overlapping(net, short, known)
    np.testing.assert_allclose(got.nats, scores.nats, rtol=1e-12)


def _counted(hidden, rows):
    def counting(self, tokens, *args):
        rows.append(tokens.numel())
        return hidden(self, tokens, *args)

    return counting


def test_the_sum_over_tokens_is_the_sum_over_documents_and_a_wrong_one_is_refused(net, held):
    tokens, scores = score_tokens(net, held.tokens)
    held_out_scores.check_sums(scores, tokens)
    with pytest.raises(DataError, match="no number of it can be trusted"):
        held_out_scores.check_sums(Scores(scores.nats * 1.001, scores.tokens), tokens)
    with pytest.raises(DataError, match="no number of it can be trusted"):
        held_out_scores.check_sums(Scores(scores.nats, scores.tokens + 1), tokens)


def test_damaged_weights_give_an_error_not_a_number(held):
    model = tiny()
    with torch.no_grad():
        model.layers[0].ffn.w_up.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="not finite"):
        score_tokens(model, held.tokens)


def synthetic(confidence, right, documents=50, seed=0):
    n = len(confidence)
    rng = np.random.default_rng(seed)
    return TokenScores(rng.integers(0, documents, n), rng.integers(1, 65, n), rng.random(n), confidence, right)


def test_calibration_error_is_zero_for_right_probabilities_and_the_excess_for_overconfident_ones():
    rng = np.random.default_rng(1)
    confidence = rng.uniform(0.05, 0.95, 200_000)
    right = calibration(synthetic(confidence, rng.random(200_000) < confidence), 50, 200, 1)
    assert right.expected_error.value < 0.006 and right.expected_error.low <= right.expected_error.high
    for row in right.rows:
        assert row.accuracy.value == pytest.approx(row.confidence, abs=0.02)
    assert sum(r.tokens for r in right.rows) == 200_000
    overconfident = calibration(synthetic(confidence, rng.random(200_000) < confidence - 0.05), 50, 200, 1)
    assert overconfident.expected_error.value == pytest.approx(0.05, abs=0.006)
    assert overconfident.expected_error.low <= overconfident.expected_error.value <= overconfident.expected_error.high


def test_the_position_curve_counts_every_token_once_and_falls_where_the_nats_fall():
    rng = np.random.default_rng(2)
    seen = rng.integers(1, 65, 20_000)
    scores = TokenScores(rng.integers(0, 40, 20_000), seen, 5 - np.log2(seen) / 2, rng.random(20_000), seen > 3)
    rows = position_curve(scores, 40, 64, 100, 1)
    assert [r.seen for r in rows] == [1, 2, 4, 8, 16, 32, 64] and sum(r.tokens for r in rows) == 20_000
    assert all(a.value > b.value for a, b in pairwise(rows))
    assert rows[0] == PositionScore(seen=1, tokens=int((seen == 1).sum()), value=5.0, low=5.0, high=5.0)


def test_a_causal_model_passes_the_probe_and_one_that_looks_ahead_does_not(net, held, monkeypatch):
    found = probe_leaks(net, held.tokens[0], False, 1)
    assert "no logit" in found.later_tokens and "not masked" in found.other_documents
    assert "no logit" in probe_leaks(net, held.tokens[0], True, 1).other_documents
    real = torch.nn.functional.scaled_dot_product_attention

    def looks_ahead(q, k, v, **kw):
        return real(q, k, v, **{**kw, "is_causal": False})

    with monkeypatch.context() as m:
        m.setattr(torch.nn.functional, "scaled_dot_product_attention", looks_ahead)
        with pytest.raises(DataError, match=r"sees what it must not: logits at position 0 changed"):
            probe_leaks(net, held.tokens[0], False, 1)

    def sees_all_documents(self, tokens, cache=None, segments=None):
        return hidden(self, tokens, cache)

    hidden = type(net).hidden
    monkeypatch.setattr(type(net), "hidden", sees_all_documents)
    with pytest.raises(DataError, match="the document before it in the row was changed"):
        probe_leaks(net, held.tokens[0], True, 1)
