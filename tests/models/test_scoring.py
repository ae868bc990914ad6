"""Scoring of documents: without dropout, in the requested precision, and with few logits at a time."""

import numpy as np
import pytest
import torch

from foundry.config import ModelConfig
from foundry.models import MiniLLM
from foundry.models.scoring import score_documents

CONFIG = ModelConfig(
    vocab_size=64, dim=32, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=48, max_seq_len=16, dropout=0.5
)


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = MiniLLM(CONFIG)
    with torch.no_grad():  # branches that begin as zeros would hide dropout
        for p in model.parameters():
            p.add_(torch.randn_like(p) * 0.2)
    return model


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 64, (3, 16))
    return tokens, np.roll(tokens, -1, 1), np.array([0, 1, 0])


def test_a_model_that_trains_with_dropout_is_scored_without_it_and_stays_in_training_mode(model):
    expected, counts = score_documents(model.eval(), [batch()], 2)
    got, _ = score_documents(model.train(), [batch()], 2)
    assert (got == expected).all() and counts.tolist() == [32, 16] and model.training


def test_ignored_targets_count_nowhere_and_documents_add_up_over_batches(model):
    tokens, targets, numbers = batch()
    masked = targets.copy()
    masked[:, :10] = -100
    first, n = score_documents(model, [(tokens, masked, numbers)], 3)
    rest = np.where(masked == -100, targets, -100)
    second, m = score_documents(model, [(tokens, rest, numbers)], 3)
    both, _ = score_documents(model, [(tokens, masked, numbers), (tokens, rest, numbers)], 3)
    at_once, _ = score_documents(model, [(tokens, targets, numbers)], 3)
    assert n.tolist() == [12, 6, 0] and m.tolist() == [20, 10, 0] and at_once[2] == 0
    assert (both == first + second).all()
    np.testing.assert_allclose(both, at_once, rtol=1e-6)


def test_precision_is_that_of_the_products(model):
    exact, _ = score_documents(model, [batch()], 2)
    rounded, _ = score_documents(model, [batch()], 2, torch.bfloat16)
    assert (rounded != exact).all()
    np.testing.assert_allclose(rounded, exact, rtol=0.01)


@pytest.mark.parametrize("vocab", [1000, 50_000, 1 << 25])
def test_at_most_64_mib_of_logits_exist_at_a_time_and_at_least_those_of_one_token(model, monkeypatch, vocab):
    seen = []
    monkeypatch.setattr(MiniLLM, "nats", lambda self, x, y, chunk: seen.append(chunk) or torch.zeros(x.shape))
    model.cfg = model.cfg.model_copy(update={"vocab_size": vocab})
    score_documents(model, [batch()], 2)
    assert seen == [max(1, (64 << 20) // 4 // vocab)]
