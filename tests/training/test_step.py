"""One step of training against the same step written out: its loss, its gradient's norm, its random numbers."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from foundry.config import ModelConfig, TrainConfig
from foundry.models import MiniLLM
from foundry.training.optimizer import Optimizers
from foundry.training.parallel import Parallel
from foundry.training.pretraining import NextToken
from foundry.training.state import TrainState
from foundry.training.step import Backward, TrainStep, _lowered
from foundry.utils.distributed import World
from foundry.utils.splitmix import step_seed

TINY = ModelConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16)
INF = float("inf")
ALONE = World(0, 1, torch.device("cpu"))


class Loader:
    """Batches of 6 rows, of which the 0th, 1st, ... asked for differ; targets that do not count, and targets 0."""

    follows_weights = False
    widths_vary = False

    def batch(self, number):
        rng = torch.Generator().manual_seed(number)
        tokens, targets = (torch.randint(0, 50, (6, 16), generator=rng) for _ in range(2))
        targets[:, ::3], targets[0], targets[:, 1] = -1, -1, 0
        return tokens, targets

    def tensors(self, number, documents):
        return *self.batch(number), torch.arange(16).expand(6, 16) // (3 + number) if documents else None


class Watched(Parallel):
    """Keeps which micro-batches are the last one of a step."""

    def accumulating(self, last):
        self.lasts = [*getattr(self, "lasts", []), last]
        return nullcontext()


def made(micro_rows=6, scaler=None, **train):
    torch.manual_seed(1)
    model = MiniLLM(TINY)
    config = TrainConfig(steps=10, warmup_steps=0, grad_clip=0.0, z_loss=0.0, **train)
    loss = NextToken(1024, config.z_loss)
    parallel = Watched(model, ALONE, "ddp", loss)
    scaler = scaler or torch.amp.GradScaler("cpu", enabled=False)
    state = TrainState(model, Optimizers(model, config), scaler, {})
    skipped = SimpleNamespace(batch=lambda step: step + 3)
    backward = Backward(parallel.module, scaler)
    return TrainStep(config, 3, ALONE, Loader(), loss, skipped, parallel, backward, micro_rows), state


def by_hand(model, number, masked):
    """(mean nats of the targets that count, norm of its gradient)."""
    tokens, targets, segments = Loader().tensors(number, masked)
    nats, _ = model.summed_loss(tokens, targets, segments, chunk=96)
    loss = nats / (targets >= 0).sum()
    grads = torch.autograd.grad(loss, list(model.parameters()))
    return loss.item(), torch.cat([g.flatten() for g in grads]).norm().item()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("micro_rows", [6, 4, 1])
def test_a_steps_loss_is_the_mean_over_all_targets_that_count_and_its_norm_that_of_the_mean(micro_rows, masked):
    step, state = made(micro_rows, document_mask=masked, packing="best_fit" if masked else "cut")
    for number in (3, 4, 5):  # the batch that `skipped` says; no gradient is left of the step before
        expected = by_hand(state.model, number, masked)
        loss, norm, factor = step(state)
        assert (loss, norm) == (pytest.approx(expected[0], rel=1e-5), pytest.approx(expected[1], rel=1e-4))
        assert factor == state.optimizers.set_lr(state.step)
        state.step += 1
    cuts = {6: [True], 4: [False, True], 1: [False] * 5 + [True]}[micro_rows]
    assert step.parallel.lasts == cuts * 3


@pytest.mark.parametrize("scale", [None, 8.0])
def test_a_batch_without_a_term_changes_no_weight_and_no_moment(scale):
    """Momentum and weight decay would move the weights although the gradient is 0."""
    scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=100) if scale else None
    step, state = made(weight_decay=0.1, scaler=scaler)
    step(state)
    state.step += 1
    before = {k: v.clone() for k, v in (state.model.state_dict() | state.optimizers.tensors()).items()}
    assert before
    read = step.loader.batch
    step.loader.batch = lambda number: (read(number)[0], torch.full((6, 16), -100))
    assert step(state) == (0.0, 0.0, pytest.approx(1.0))
    after = state.model.state_dict() | state.optimizers.tensors()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    step.loader.batch = read
    assert scale is None or state.scaler.get_scale() == scale
    assert step(state)[0] > 0 and not torch.equal(before["norm.weight"], state.model.norm.weight)


def test_a_scale_of_the_loss_grows_with_good_steps_and_changes_no_number():
    plain, scaled = made(), made(scaler=torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=2))
    for n in range(4):
        a, b = plain[0](plain[1]), scaled[0](scaled[1])
        assert a == pytest.approx(b, rel=1e-6)
        assert scaled[1].scaler.get_scale() == (64, 128, 128, 256)[n]
        plain[1].step = scaled[1].step = n + 1
    for p, q in zip(plain[1].model.parameters(), scaled[1].model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("scale", "gradient", "lowered", "after"),
    [(4.0, INF, True, 2.0), (2.0, float("nan"), True, 1.0), (1.0, INF, False, 1.0), (None, INF, False, 1.0)],
)
def test_the_scale_is_the_cause_of_an_overflow_while_it_can_be_lowered(scale, gradient, lowered, after):
    p = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([p], lr=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
    scaler.scale(p.sum() * gradient).backward()
    scaler.unscale_(optimizer)
    assert _lowered(scaler) is lowered and scaler.get_scale() == after


def test_the_random_numbers_of_a_step_are_seeded_by_splitmix64_of_seed_step_and_rank():
    """Its finalizer in NumPy's arithmetic of 64 bits (Steele et al. 2014)."""
    u = np.uint64

    def mixed(*values):
        with np.errstate(over="ignore"):
            factors = (u(0x9E3779B97F4A7C15), u(0xBF58476D1CE4E5B9), u(0x94D049BB133111EB))
            z = sum((u(v) * f for v, f in zip(values, factors, strict=True)), u(0))
            z = (z ^ (z >> u(30))) * factors[1]
            z = (z ^ (z >> u(27))) * factors[2]
            return int(z ^ (z >> u(31))) >> 1

    cases = [(s, t, r) for s in (0, 1, 3, 2**31) for t in (0, 1, 999, 10**7) for r in (0, 1, 511)]
    assert [step_seed(*c) for c in cases] == [mixed(*c) for c in cases]
    assert len({step_seed(*c) for c in cases}) == len(cases) and max(step_seed(*c) for c in cases) < 2**63
