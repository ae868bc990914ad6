"""The reward model: one number at the end symbol, of which only differences mean something."""

import math

import numpy as np
import pytest
import torch
from pair_runs import make_pairs
from toy_rl import tiny

from foundry.chat.example import Turn
from foundry.chat.pairs import encode_pairs, sides_of
from foundry.chat.reward import (
    BradleyTerry,
    RewardedPairs,
    begin_rewards,
    calibration_error,
    reward_of,
    rewards,
)
from foundry.models import load_model, save_model

pytestmark = pytest.mark.numeric


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return encode_pairs(tokenizer, make_pairs(), 48)[0]


def drawn(tokenizer, seed=0, **changes):
    """A reward model with a row that is not 0."""
    model = tiny(seed, **changes)
    row = begin_rewards(model, tokenizer)
    with torch.no_grad():
        model.head_weight[row] = torch.randn(model.cfg.dim, generator=torch.Generator().manual_seed(seed))
    return model, row


@pytest.mark.parametrize("tied", [False, True])
def test_every_reward_of_a_new_model_is_0_and_its_loss_ln_2(tokenizer, pairs, tied):
    model = tiny(tie_embeddings=tied)
    row = begin_rewards(model, tokenizer)
    batch = *sides_of(pairs), torch.zeros(len(pairs), 2)
    minimised, reported = BradleyTerry(row, 0.01)(model, *batch)
    assert minimised.item() == reported.item() == pytest.approx(math.log(2) * len(pairs), abs=1e-4)
    minimised.backward()
    assert model.head_weight.grad[row].abs().max() > 1e-3


def test_a_reward_is_read_at_the_end_symbol_and_nothing_after_it_counts(tokenizer, pairs):
    model, row = drawn(tokenizer)
    tokens, targets = (t.flatten(0, 1) for t in sides_of(pairs, width=48))
    found = rewards(model, tokens, targets, row)
    for i, side in enumerate(side for p in pairs for side in (p.chosen, p.rejected)):
        alone = model.hidden(torch.from_numpy(side.tokens)[None])[0, -1] @ model.head_weight[row]
        assert found[i].item() == pytest.approx(alone.item(), abs=1e-4)
        tokens[i, len(side.tokens) :] = 7
    torch.testing.assert_close(rewards(model, tokens, targets, row), found, atol=1e-5, rtol=1e-5)
    assert found.std() > 0.1


def test_the_loss_is_bradley_terry_with_a_centre_and_swapping_the_sides_flips_the_gradient_of_the_row(tokenizer, pairs):
    model, row = drawn(tokenizer)
    tokens, targets = sides_of(pairs[:5])
    r = rewards(model, tokens.flatten(0, 1), targets.flatten(0, 1), row).view(-1, 2)
    minimised, reported = BradleyTerry(row, 0.5)(model, tokens, targets, torch.zeros(5, 2))
    plain = torch.log1p(torch.exp(r[:, 1] - r[:, 0])).sum()
    torch.testing.assert_close(reported, plain.detach())
    torch.testing.assert_close(minimised - reported, (0.5 * (r[:, 0] + r[:, 1]) ** 2).sum(), atol=1e-4, rtol=1e-4)
    fresh, row = tiny(), begin_rewards(tiny(), tokenizer)
    begin_rewards(fresh, tokenizer)
    grads = []
    for flip in (False, True):
        fresh.zero_grad()
        sides = (tokens.flip(1), targets.flip(1)) if flip else (tokens, targets)
        BradleyTerry(row, 0.0)(fresh, *sides, torch.zeros(5, 2))[0].backward()
        grads.append(fresh.head_weight.grad[row].clone())
    torch.testing.assert_close(grads[0], -grads[1], atol=1e-6, rtol=1e-4)


def test_a_reward_model_is_saved_and_loaded_as_any_model(tokenizer, tmp_path):
    model, _ = drawn(tokenizer)
    model.eval()
    save_model(tmp_path / "reward", model)
    prompt, answer = (Turn("user", "what?"),), (Turn("assistant", "this"),)
    before = reward_of(model, tokenizer, prompt, answer)
    assert reward_of(load_model(tmp_path / "reward"), tokenizer, prompt, answer) == before != 0


def test_mistake_22_the_rule_that_the_longer_one_wins_stands_beside_the_accuracy(tokenizer, pairs):
    model, row = drawn(tokenizer)
    seen = RewardedPairs(pairs, row)(model, lambda f, *batch: f(model, *batch), torch.float32, 3)
    tokens, targets = sides_of(pairs)
    r = rewards(model, tokens.flatten(0, 1), targets.flatten(0, 1), row).view(-1, 2).detach().numpy()
    assert seen["val_accuracy"] == pytest.approx((r[:, 0] > r[:, 1]).mean())
    longer = [(p.chosen.length > p.rejected.length) + 0.5 * (p.chosen.length == p.rejected.length) for p in pairs]
    assert seen["val_longer_wins"] == pytest.approx(np.mean(longer)) and 0 < np.mean(longer) < 1
    assert seen["val_reward"] == pytest.approx(r.mean(), abs=1e-4)


def test_the_calibration_error_is_0_for_true_probabilities_and_not_for_boasts():
    rng = np.random.default_rng(0)
    margin = rng.normal(0, 1.5, 40_000)
    true = np.where(rng.random(len(margin)) < 1 / (1 + np.exp(-np.abs(margin))), np.abs(margin), -np.abs(margin))
    assert calibration_error(true) < 0.02
    assert calibration_error(5 * true) > 0.15
    assert calibration_error(np.zeros(10)) == 0
