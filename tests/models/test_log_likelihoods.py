"""Log-probabilities of sequences, with the gradient of any function of them."""

import pytest
import torch
import torch.nn.functional as F
from toy_rl import tiny

from foundry.models import MiniLLM
from foundry.models.loss import token_nats
from foundry.utils.targets import IGNORE

pytestmark = pytest.mark.numeric


def rows(seed=0, shape=(4, 12)):
    g = torch.Generator().manual_seed(seed)
    tokens = torch.randint(3, 400, shape, generator=g)
    targets = torch.randint(3, 400, shape, generator=g)
    targets[:, :5] = IGNORE
    return tokens, targets


@pytest.mark.parametrize(("chunk", "cap"), [(1, 0.0), (5, 0.0), (4096, 7.0)])
def test_values_and_gradients_are_those_of_the_full_logits(chunk, cap):
    model, (tokens, targets) = tiny(logit_softcap=cap), rows()

    def plain(model: MiniLLM) -> torch.Tensor:
        logits = model(tokens)[0].double()
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
        return -nats.view_as(targets).sum(1)

    found = []
    for values in (model.log_likelihoods(tokens, targets, chunk=chunk), plain(model)):
        model.zero_grad()
        F.logsigmoid(0.3 * (values[0] - values[1]) - 0.2 * values[2]).backward()
        found.append((values.detach(), [p.grad.clone() for p in model.parameters()]))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-6, atol=1e-5)
    for mine, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-6)
    assert any(g.abs().max() > 1e-4 for g in found[0][1])


def test_a_token_without_a_target_gets_neither_a_value_nor_a_gradient():
    x, weight = torch.randn(6, 8, requires_grad=True), torch.randn(30, 8, requires_grad=True)
    targets = torch.tensor([IGNORE, 4, IGNORE, 7, 2, IGNORE])
    nats = token_nats(x, weight, targets, chunk=2)
    assert (nats == 0).tolist() == [True, False, True, False, False, True]
    nats.sum().backward()
    assert (x.grad.abs().sum(1) == 0).tolist() == (targets == IGNORE).tolist()


def test_rows_without_any_target_have_the_log_probability_0_and_no_gradient():
    model, (tokens, _) = tiny(), rows()
    values = model.log_likelihoods(tokens, torch.full_like(tokens, IGNORE), chunk=8)
    values.sum().backward()
    assert values.tolist() == [0.0] * 4
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
