"""Schedules, optimizers and accounting are what their sources say."""

import itertools
import math

import pytest
import torch

from foundry.config import ModelConfig, TrainConfig
from foundry.models import MiniLLM
from foundry.training.optimizer import Muon, Optimizers, orthogonalize
from foundry.training.parallel import clip_gradients, gradient_norm
from foundry.training.plan import make_plan
from foundry.training.schedule import lr_factor, stable_steps

pytestmark = pytest.mark.numeric
TINY = ModelConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16)


@pytest.mark.parametrize("schedule", ["cosine", "wsd"])
def test_the_rate_warms_up_peaks_and_ends_at_its_floor(schedule):
    cfg = TrainConfig(steps=1000, warmup_steps=100, schedule=schedule, decay_fraction=0.3, min_lr_ratio=0.1)
    f = [lr_factor(s, cfg) for s in range(1000)]
    assert f[:101] == pytest.approx(
        [(s + 1) / 101 for s in range(101)], rel=1e-12
    )  # linear; the peak at warmup_steps, not before
    assert max(f) == f[100] == 1.0 and f[100:] == sorted(f[100:], reverse=True)
    assert f[-1] == pytest.approx(0.1, abs=0.005)
    if schedule == "wsd":
        assert set(f[100:700]) == {1.0} and f[850] == pytest.approx(0.1 + 0.9 * 0.5)
    else:
        assert f[550] == pytest.approx(0.1 + 0.9 * 0.5, abs=1e-9)


def test_the_rate_of_every_accepted_recipe_moves_in_small_steps():
    """wsd with a warm-up that ended within the decay would jump; it is refused."""
    with pytest.raises(
        ValueError,
        match=r"the warm-up \(40 steps\) does not fit before the decay of wsd, which begins after step 20 of 50",
    ):
        TrainConfig(steps=50, warmup_steps=40, decay_fraction=0.6)
    for schedule in ("wsd", "cosine", "linear", "constant"):
        for warmup in (0, 10, 20):
            cfg = TrainConfig(steps=50, warmup_steps=warmup, decay_fraction=0.6, schedule=schedule)
            f = [lr_factor(s, cfg) for s in range(50)]
            assert max(abs(a - b) for a, b in itertools.pairwise(f)) < 0.1 and max(f) == 1.0, (schedule, warmup)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("linear", [0.25, 0.5, 0.75, 1.0, 0.85, 0.7, 0.55, 0.4]),
        ("cosine", [0.25, 0.5, 0.75, 1.0, 0.9121320343559643, 0.7, 0.48786796564403575, 0.4]),
        ("wsd", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.7, 0.4]),
        ("constant", [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0]),
    ],
)
def test_the_rate_of_each_step_by_hand(schedule, expected):
    """Warm-up of 3 steps, floor 0.4 after step 7; the step after the last one is at the floor."""
    cfg = TrainConfig(steps=7, warmup_steps=3, schedule=schedule, decay_fraction=2 / 7, min_lr_ratio=0.4)
    f = [lr_factor(s, cfg) for s in range(8)]
    assert f == pytest.approx(expected, rel=1e-12)


def test_up_to_where_a_longer_run_is_the_same_run():
    def stable(schedule, steps, warmup=3):
        return stable_steps(TrainConfig(steps=steps, warmup_steps=warmup, schedule=schedule, decay_fraction=0.25))

    assert [stable(s, 20) for s in ("constant", "wsd", "linear", "cosine")] == [20, 15, 3, 3]


def test_gradients_are_scaled_to_the_limit_of_their_global_norm_and_no_further():
    def clipped(limit, *grads):
        tensors = [torch.tensor(g) for g in grads]
        norm = gradient_norm(tensors).item()
        clip_gradients(tensors, norm, limit)
        return norm, [g.tolist() for g in tensors]

    grads = ([3.0, 0.0], [0.0, 4.0])  # of norm 5 together
    assert clipped(1.0, *grads) == (5.0, [pytest.approx([0.6, 0.0], rel=1e-5), pytest.approx([0.0, 0.8], rel=1e-5)])
    for limit in (0.0, 5.0, 7.0):
        assert clipped(limit, *grads) == (5.0, [list(g) for g in grads])
    norm, (kept,) = clipped(1.0, [math.inf, 1.0])
    assert norm == math.inf and kept == [math.inf, 1.0]


def test_orthogonalize_brings_singular_values_near_one_and_keeps_the_singular_vectors():
    torch.manual_seed(0)
    for shape in ((3, 16, 40), (2, 40, 16)):
        g = torch.randn(shape)
        u = orthogonalize(g)
        s = torch.linalg.svdvals(u)
        assert s.min() > 0.6 and s.max() < 1.3
        U, _, Vh = torch.linalg.svd(g, full_matrices=False)
        core = U.mT @ u @ Vh.mT
        off = core - torch.diag_embed(core.diagonal(dim1=-2, dim2=-1))
        assert off.abs().max() < 1e-3


def newton_schulz(g):
    """The quintic iteration of Jordan et al. 2024 in float64, matrix by matrix, always of the shape it has."""
    x = g.double() / g.double().norm()
    for _ in range(5):
        s = x @ x.T
        x = 3.4445 * x - 4.7750 * (s @ x) + 2.0315 * (s @ s @ x)
    return x


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (24, 24)])
def test_orthogonalize_is_five_iterations_of_each_matrix_whatever_its_scale(shape):
    g = torch.randn(3, *shape, generator=torch.Generator().manual_seed(1))
    for scale in (1.0, 1e-4, 1e4):
        u = orthogonalize(g * scale)
        for matrix, got in zip(g, u, strict=True):
            torch.testing.assert_close(got.double(), newton_schulz(matrix), atol=1e-4, rtol=1e-3)
    zero = orthogonalize(torch.zeros(1, *shape))
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize("shape", [(64, 160), (160, 64), (96, 96)])
def test_in_bfloat16_the_update_differs_by_about_one_percent(shape):
    g = torch.randn(4, *shape, generator=torch.Generator().manual_seed(2))
    exact, half = orthogonalize(g), orthogonalize(g.bfloat16())
    assert half.dtype == torch.bfloat16
    assert 0 < (half.float() - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("options", [{"momentum": 0.8, "weight_decay": 0.1}, {}])
@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16)])
def test_muon_is_momentum_then_nesterov_orthogonalized_scaled_and_decayed(shape, options):
    """Step by step in float64; and a parameter without a gradient stays as it is."""
    rng = torch.Generator().manual_seed(0)
    momentum, decay = options.get("momentum", 0.95), options.get("weight_decay", 0.0)
    a, still = (torch.nn.Parameter(torch.randn(shape, generator=rng)) for _ in range(2))
    expected, m, before = a.detach().double(), 0.0, still.detach().clone()
    muon = Muon([a, still], lr=0.02, **options)
    for _ in range(5):
        a.grad = torch.randn(shape, generator=rng)
        g = a.grad.double()
        m = momentum * m + (1 - momentum) * g
        update = newton_schulz((1 - momentum) * g + momentum * m)
        expected = expected * (1 - 0.02 * decay) - 0.02 * max(1, shape[0] / shape[1]) ** 0.5 * update
        muon.step()
        torch.testing.assert_close(a.detach().double(), expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(still, before)


def test_muon_follows_torchs_muon():
    torch.manual_seed(0)
    a = torch.nn.Parameter(torch.randn(24, 16))
    b = torch.nn.Parameter(a.detach().clone())
    ours = Muon([a], lr=0.02, momentum=0.95, weight_decay=0.1)
    theirs = torch.optim.Muon([b], lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn="original")
    for _ in range(5):
        g = torch.randn(24, 16)
        a.grad, b.grad = g.clone(), g.clone()
        ours.step()
        theirs.step()
    # torch runs the iteration in bfloat16 (8 bits of mantissa), we in float32.
    assert (a - b).abs().max() < 0.02 * 5 * 0.05
    assert (a - b).norm() / (a - torch.zeros_like(a)).norm() < 0.01


def test_every_parameter_is_in_exactly_one_group_and_an_unknown_one_is_refused():
    model = MiniLLM(TINY)
    for kind in ("adamw", "muon"):
        groups = [
            p for o in Optimizers(model, TrainConfig(optimizer=kind)) for g in o.param_groups for p in g["params"]
        ]
        assert sorted(map(id, groups)) == sorted(map(id, model.parameters()))


@pytest.mark.parametrize(
    ("name", "shape"),
    [("extra", (2, 2)), ("bias", (2,)), ("norms", (2, 2)), ("layers.0.gain", (2,)), ("layers.0.cube", (2, 2, 2))],
)
def test_a_parameter_that_fits_no_group_is_refused(name, shape):
    model = MiniLLM(TINY)
    holder, _, last = name.rpartition(".")
    setattr(model.get_submodule(holder), last, torch.nn.Parameter(torch.zeros(shape)))
    with pytest.raises(ValueError, match=rf"no optimizer group takes the parameters {name}: add a rule"):
        Optimizers(model, TrainConfig())


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_muon_multiplies_in_the_precision_of_the_run(precision):
    muon, _ = Optimizers(MiniLLM(TINY), TrainConfig(optimizer="muon"), precision)
    assert muon.dtype == precision


def test_norms_and_embeddings_are_not_decayed():
    model = MiniLLM(TINY)
    decayed = [
        p
        for o in Optimizers(model, TrainConfig(optimizer="adamw", weight_decay=0.3))
        for g in o.param_groups
        if g["weight_decay"]
        for p in g["params"]
    ]
    assert len(decayed) == 7 * TINY.n_layers and all(p.ndim == 2 for p in decayed)
    assert not any(p is model.tok_embeddings.weight for p in decayed)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_optimizer_state_comes_back(kind):
    torch.manual_seed(0)
    cfg = TrainConfig(optimizer=kind)

    def run(model, opt, n, start=0):
        for i in range(n):
            x = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(start + i))
            opt.set_lr(start + i + 100)
            opt.zero_grad()
            model(x, x)[1].backward()
            for o in opt:
                o.step()

    model = MiniLLM(TINY)
    opt = Optimizers(model, cfg)
    run(model, opt, 3)
    twin = MiniLLM(TINY)
    twin.load_state_dict(model.state_dict())
    twin_opt = Optimizers(twin, cfg)
    twin_opt.load_tensors({k: v.clone() for k, v in opt.tensors().items()})
    run(model, opt, 3, 3)
    run(twin, twin_opt, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    with pytest.raises(ValueError, match="belongs to no parameter"):
        twin_opt.load_tensors({"nothing/momentum": torch.zeros(1)})
    twin_opt.load_tensors({})
    assert twin_opt.tensors() == {}  # what was there before is gone
    assert all(p.grad is not None for p in twin.parameters())
    twin_opt.zero_grad()
    assert all(p.grad is None for p in twin.parameters())  # the memory, too


def test_the_state_goes_where_the_parameters_are_and_adamws_step_count_where_adamw_keeps_it():
    """The other device is torch's meta device here; a fused AdamW has the count beside the parameter."""
    model = MiniLLM(TINY)
    here = Optimizers(model, TrainConfig(optimizer="adamw"))
    assert all(g["fused"] for g in here.param_groups)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    here.step()
    with torch.device("meta"):
        there = Optimizers(MiniLLM(TINY), TrainConfig(optimizer="adamw"))
    assert not any(g["fused"] for g in there.param_groups)
    there.load_tensors(here.tensors())
    for name, value in there.tensors().items():
        assert value.device.type == ("cpu" if name.endswith("/step") else "meta") and value.ndim == (
            0 if name.endswith("/step") else 1 + ("norm" not in name)
        )
    for o in there:
        o.defaults["fused"] = True
    there.load_tensors(here.tensors())
    assert {v.device.type for v in there.tensors().values()} == {"meta"}


def test_each_rate_is_its_own_peak_times_the_factor():
    cfg = TrainConfig(optimizer="muon", lr=0.004, matrix_lr=0.03, steps=100, warmup_steps=3)
    optimizers = Optimizers(MiniLLM(TINY), cfg)
    for step in (0, 1, 99, 50):
        factor = optimizers.set_lr(step)
        assert factor == lr_factor(step, cfg)
        assert [g["lr"] for g in optimizers.param_groups] == [0.03 * factor, 0.004 * factor]


def test_the_plan_derives_what_the_log_promises():
    plan = make_plan(TINY, TrainConfig(steps=100, tokens_per_step=64, warmup_steps=1), 1600)
    assert plan.tokens == 6400 and plan.epochs == 4.0 and plan.first_loss == round(math.log(50), 4)
    assert plan.params == sum(p.numel() for p in MiniLLM(TINY).parameters())
