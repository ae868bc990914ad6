"""DPO: its identities, its reference, and the mistakes that let a loss fall while the model gets worse."""

import copy
import math

import numpy as np
import pytest
import torch
from pair_runs import make_pairs
from toy_rl import tiny

from foundry.chat.dpo import DpoLoss, HeldOutPairs, reference_of
from foundry.chat.pairs import EncodedPair, encode_pairs, sides_of
from foundry.config import DataError, FoundryError
from foundry.utils.targets import IGNORE

pytestmark = pytest.mark.numeric
LOSS = DpoLoss(0.1, 0.0, 64)


@pytest.fixture(scope="module")
def pairs(tokenizer):
    return encode_pairs(tokenizer, make_pairs(), 48)[0]


def reference(model, pairs, folder):
    return reference_of(model, pairs, 64, torch.float32, folder)[0]


def gradients(model, loss, *batch):
    model.zero_grad()
    loss(model, *batch)[0].backward()
    return [p.grad.clone() for p in model.parameters()]


def moved(model, seed=1, by=0.02):
    model, g = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            p += by * torch.randn(p.shape, generator=g)
    return model


def metrics(validator, model):
    return validator(model, lambda function, *batch: function(model, *batch), torch.float32, 4)


def test_mistake_20_the_loss_of_the_parent_is_ln_2_and_a_moved_reference_is_seen(pairs, tmp_path):
    """Also in training mode with dropout elsewhere: the stored values are those of the evaluation mode."""
    model = tiny().train()
    known = reference(model, pairs, tmp_path)
    assert model.training
    tokens, targets = sides_of(pairs)
    loss = LOSS(model, tokens, targets, torch.from_numpy(known))[0] / len(pairs)
    assert loss.item() == pytest.approx(math.log(2), abs=1e-6)
    planted = reference(moved(model), pairs, tmp_path)  # what a reference that follows the weights would be
    assert abs(LOSS(model, tokens, targets, torch.from_numpy(planted))[0].item() / len(pairs) - math.log(2)) > 1e-4
    dropping = tiny(dropout=0.5).train()
    dropping.load_state_dict(model.state_dict())
    assert np.allclose(reference(dropping, pairs, tmp_path / "other"), known, atol=1e-5)


def test_mistake_20_a_stored_reference_is_that_of_its_weights_and_data(pairs, tmp_path, monkeypatch):
    model = tiny()
    known, name = reference_of(model, pairs, 64, torch.float32, tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr("foundry.chat.dpo._log_likelihoods", lambda *args: np.zeros((len(pairs), 2)))
    again, same = reference_of(model, pairs, 64, torch.float32, tmp_path)
    assert again.tolist() == known.tolist() and same == name and not np.any(known == 0)
    assert reference_of(moved(model), pairs, 64, torch.float32, tmp_path)[1] != name
    assert reference_of(model, pairs[1:], 64, torch.float32, tmp_path)[1] != name
    file.write_text(file.read_text().replace("-", "", 1))  # a damaged file is computed again
    assert not reference_of(model, pairs, 64, torch.float32, tmp_path)[0].any()


def test_swapping_the_sides_flips_the_gradient(pairs, tmp_path):
    model = tiny()
    known = torch.from_numpy(reference(model, pairs, tmp_path))
    tokens, targets = sides_of(pairs[:4])
    there = gradients(model, LOSS, tokens, targets, known[:4])
    back = gradients(model, LOSS, tokens.flip(1), targets.flip(1), known[:4].flip(1))
    assert max(g.abs().max() for g in there) > 1e-3
    for a, b in zip(there, back, strict=True):
        torch.testing.assert_close(a, -b, atol=1e-6, rtol=1e-3)


def test_mistake_21_equal_sides_have_no_gradient_and_nor_has_the_prompt(pairs, tmp_path):
    model = tiny()
    same = [EncodedPair(p.chosen, p.chosen, p.task, p.prompt) for p in pairs[:4]]
    known = torch.from_numpy(reference(model, same, tmp_path))
    one_side = DpoLoss(0.1, 1.0, 64)  # its term of SFT has the gradient of one side, which the other one cancels
    largest = max(g.abs().max() for g in gradients(model, one_side, *sides_of(same), known))
    assert max(g.abs().max() for g in gradients(model, LOSS, *sides_of(same), known)) < 1e-5 * largest
    tokens, targets = sides_of(pairs[:1])
    planted = torch.where(targets == IGNORE, tokens.roll(-1, -1), targets)  # the prompt is counted, too
    true = LOSS(moved(model), tokens, targets, torch.zeros(1, 2))[0]
    assert not torch.allclose(LOSS(moved(model), tokens, planted, torch.zeros(1, 2))[0], true, atol=1e-4)


def test_mistake_13_the_loss_is_a_sum_over_pairs_however_the_batch_is_cut(pairs, tmp_path):
    model = moved(tiny())
    known = torch.from_numpy(reference(tiny(), pairs, tmp_path))
    loss = DpoLoss(0.3, 0.2, 16)
    tokens, targets = sides_of(pairs[:6])
    whole = gradients(model, loss, tokens, targets, known[:6])
    parts = [
        gradients(model, loss, tokens[at], targets[at], known[:6][at]) for at in (slice(0, 1), slice(1, 3), slice(3, 6))
    ]
    assert loss.count(tokens, targets, known) == 6
    for a, *b in zip(whole, *parts, strict=True):
        torch.testing.assert_close(a, sum(b), atol=1e-5, rtol=1e-4)


def test_the_loss_is_that_of_the_paper_and_its_term_of_sft_is_nats_per_token(pairs, tmp_path):
    parent, model = tiny(), moved(tiny())
    known = reference(parent, pairs, tmp_path)
    expected = []
    for p in pairs[:5]:
        ratios, nats = [], []
        for side in (p.chosen, p.rejected):
            ids = torch.from_numpy(side.tokens)[None]
            at = torch.from_numpy(side.learnt[1:])
            scores = [m(ids[:, :-1])[0].double().log_softmax(-1)[0] for m in (model, parent)]
            each = [s.gather(1, ids[0, 1:, None])[:, 0][at] for s in scores]
            ratios.append((each[0] - each[1]).sum())
            nats.append(-each[0].mean())
        expected.append(-torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])) + 0.2 * nats[0])
    found = DpoLoss(0.1, 0.2, 7)(model, *sides_of(pairs[:5]), torch.from_numpy(known[:5]))[0]
    torch.testing.assert_close(found.double(), sum(expected), atol=1e-4, rtol=1e-5)


def test_the_divergence_is_0_for_the_parent_and_otherwise_that_of_all_logits(pairs, tmp_path):
    parent = tiny()
    validator = HeldOutPairs(pairs, reference(parent, pairs, tmp_path), parent, LOSS)
    start = metrics(validator, parent)
    assert start["val_kl"] == pytest.approx(0, abs=1e-7) and start["val_margin"] == pytest.approx(0, abs=1e-4)
    assert start["val_loss"] == pytest.approx(math.log(2), abs=1e-6)
    model, total, count = moved(parent), 0.0, 0
    for p in pairs:
        for side in (p.chosen, p.rejected):
            at = torch.from_numpy(side.learnt[1:])
            log_p, log_q = (
                m(torch.from_numpy(side.tokens[:-1])[None])[0][0, at].double().log_softmax(-1) for m in (model, parent)
            )
            total += (log_p.exp() * (log_p - log_q)).sum().item()
            count += int(at.sum())
    assert metrics(validator, model)["val_kl"] == pytest.approx(total / count, rel=1e-4) and total > 0


def test_mistake_22_both_likelihoods_can_fall_and_it_is_seen(pairs, tmp_path):
    """A model that unlearns the rejected side faster than the chosen one is right on every pair."""
    parent = tiny()
    known = reference(parent, pairs, tmp_path)
    validator = HeldOutPairs(pairs, known, parent, LOSS)
    validator.reference = known + np.array([1.0, 3.0])  # as if both had been more likely before
    seen = metrics(validator, parent)
    assert seen["val_accuracy"] == 1 and seen["val_chosen"] == pytest.approx(-1, abs=1e-4)
    assert seen["val_rejected"] == pytest.approx(-3, abs=1e-4)
    assert seen["val_longer_wins"] == pytest.approx(np.mean([p.longer_wins for p in pairs]))


def test_damaged_weights_and_no_pair_are_errors(pairs, tmp_path):
    broken = tiny()
    with torch.no_grad():
        broken.norm.weight[0] = math.nan
    with pytest.raises(FoundryError, match="not finite"):
        reference(broken, pairs, tmp_path)
    with pytest.raises(DataError, match="no pair"):
        reference(tiny(), [], tmp_path)
