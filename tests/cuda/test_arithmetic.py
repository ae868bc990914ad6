"""The numbers of a training: precisions, accumulation, recomputation, document masks, compilation."""

import math

import pytest
import torch
from small_run import MODEL
from torch.nn.attention import flex_attention

from foundry.config import FoundryError
from foundry.models import MiniLLM
from foundry.models.loss import linear_cross_entropy
from foundry.training.numerics import numerics
from foundry.utils.device import native_bfloat16


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.cuda
def test_float32_losses_are_those_of_a_cpu_up_to_rounding(gpu, curve):
    """With TensorFloat-32, whose products have ten bits, they would differ in the third digit."""
    ours, theirs = (curve(d, d, optimizer="adamw")[0] for d in ("cpu", gpu.type))
    assert theirs[0] == pytest.approx(ours[0], rel=1e-5)
    assert theirs == pytest.approx(ours, rel=1e-3) and ours[-1] < ours[0] - 0.3
    a, b = (torch.randn(512, 512, generator=torch.Generator().manual_seed(n)) for n in (1, 2))
    exact = a.double() @ b.double()
    assert (
        ((a.to(gpu) @ b.to(gpu)).cpu() - exact).abs().max() < 1e-3 < (a.bfloat16() @ b.bfloat16() - exact).abs().max()
    )


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_trains_near_float32_and_is_not_the_same(device, curve, precision):
    half, exact = curve(device, "half", precision=precision)[0], curve(device, "exact")[0]
    assert half == pytest.approx(exact, abs=0.05) and half != exact
    assert half[-1] < half[0] - 0.3


@pytest.mark.cuda
def test_the_precision_of_a_gpu_is_what_its_cores_multiply(gpu, made):
    native = torch.cuda.get_device_capability(gpu) >= (8, 0)
    assert native_bfloat16(gpu) == native
    assert made(gpu, "auto", precision="auto").execution.precision == (torch.bfloat16 if native else torch.float16)


def test_an_overflow_of_float16_skips_the_step_and_halves_the_scale(device, made):
    """No weight and no moment changes; the next step does change them."""
    trainer = made(device, "run", precision="float16")
    factor = [1.0]
    with numerics(trainer.runtime, trainer.world):
        session = trainer.session()
        state = session.state
        dict(state.model.named_parameters())["layers.0.attention.wq.weight"].register_hook(lambda g: g * factor[0])

        def step(by):
            factor[0] = by
            norm = session.step(state)[1]
            state.step += 1
            tensors = {**state.model.state_dict(), **state.optimizers.tensors()}
            return norm, state.scaler.get_scale(), {k: v.clone() for k, v in tensors.items()}

        _, scale, before = step(1.0)
        norm, lowered, after = step(math.inf)
        assert norm == math.inf and lowered == scale / 2 and len(before) > 20 and equal(before, after)
        norm, kept, moved = step(1.0)
    assert norm < 100 and kept == lowered and not equal(after, moved)


def test_a_gradient_that_is_not_finite_changes_nothing_and_is_told(device, made):
    trainer = made(device, "run", precision="bfloat16" if device.type == "cuda" else "float32")
    state = trainer.session().state
    state.model.norm.weight.register_hook(lambda g: g * math.nan)
    before = {k: v.clone() for k, v in state.model.state_dict().items()}
    with pytest.raises(FoundryError, match=r"step 1: the gradient's norm is nan .*shard-\d+.arrow"):
        trainer.fit()
    assert equal(before, state.model.state_dict())


def test_micro_batches_give_the_numbers_of_the_whole_batch_up_to_rounding(device, curve):
    whole, cut = (
        curve(device, "whole", optimizer="adamw"),
        curve(device, "cut", optimizer="adamw", micro_batch_tokens=320),
    )
    assert cut[0] == pytest.approx(whole[0], rel=1e-4)


def test_recomputed_activations_change_no_bit(device, curve):
    """With dropout: the backward pass draws the same numbers again."""
    options = {"dropout": 0.1, "precision": "bfloat16" if device.type == "cuda" else "float32"}
    a, b = curve(device, "kept", **options), curve(device, "again", recompute=True, **options)
    assert a[0] == b[0] and equal(a[1], b[1])


def masked_losses(device, blocks, backend, window, precision, recompute):
    """(loss, gradients) of rows with documents; `blocks`: by FlexAttention in place of a dense mask."""
    torch.manual_seed(1)
    model = MiniLLM(MODEL.model_copy(update={"sliding_window": window, "zero_init": False, "qk_norm": True})).to(device)
    model.block_masks, model.recompute = blocks, recompute
    rng = torch.Generator().manual_seed(2)
    tokens = torch.randint(0, 400, (3, 160), generator=rng).to(device)
    segments = (torch.rand(3, 160, generator=rng) < 0.04).cumsum(1).int()
    segments[:, 150:] = -1  # padding
    segments = segments.to(device)

    def loss(tokens, targets, segments):
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            return model.summed_loss(tokens, targets, segments, chunk=100)

    if backend:
        torch._dynamo.reset()
        loss = torch.compile(loss, dynamic=False, backend=backend)
    value, _ = loss(tokens, tokens.roll(-1, 1), segments)
    value.backward()
    return value.item(), {k: p.grad for k, p in model.named_parameters()}


@pytest.mark.parametrize(
    ("window", "recompute", "precision"),
    [(0, False, torch.float32), (9, True, torch.bfloat16)],
    ids=["float32", "window, recomputed, bfloat16"],
)
def test_documents_are_masked_by_blocks_as_by_a_dense_mask(device, monkeypatch, window, recompute, precision):
    """On a CPU the function that CUDA compiles is traced and differentiated, and computed by torch's own reference."""
    backend = "inductor"
    if device.type == "cpu":
        monkeypatch.setattr(flex_attention, "_validate_device", lambda *a: None)  # it refuses gradients on a CPU
        backend = "aot_eager"
    rel, most = (1e-5, 1e-4) if precision == torch.float32 else (2e-3, 0.05)
    dense = masked_losses(device, False, None, window, precision, recompute)
    on_cpu = masked_losses(torch.device("cpu"), False, None, window, torch.float32, recompute)
    assert dense[0] == pytest.approx(on_cpu[0], rel=10 * rel)
    blocks = masked_losses(device, True, backend, window, precision, recompute)
    assert blocks[0] == pytest.approx(dense[0], rel=rel)
    for name, grad in dense[1].items():
        assert (blocks[1][name] - grad).norm() < most * grad.norm(), name
    name = "layers.1.attention.wq.weight"
    other = masked_losses(device, False, None, 9 - window, precision, False)[1][name]
    assert (other - dense[1][name]).norm() > 0.2 * dense[1][name].norm()  # the window hides something


@pytest.mark.cuda
@pytest.mark.parametrize("options", [{}, {"document_mask": True, "packing": "best_fit"}], ids=["", "document masks"])
def test_compiled_training_stays_near_eager(gpu, made, curve, options):
    assert made(gpu, "which", compile="always", **options).session().state.model.block_masks
    eager = curve(gpu, "eager", precision="bfloat16", **options)[0]
    compiled = curve(gpu, "compiled", precision="bfloat16", compile="always", **options)[0]
    assert compiled == pytest.approx(eager, abs=0.02) and compiled[-1] < compiled[0] - 0.3


@pytest.mark.cuda
def test_float16_is_compiled_too(gpu, curve):
    eager, compiled = (curve(gpu, c, precision="float16", compile=c)[0] for c in ("never", "always"))
    assert compiled == pytest.approx(eager, abs=0.02)


@pytest.mark.cuda
def test_the_head_subtracts_the_targets_as_a_scatter_does(gpu):
    """Its arithmetic on CUDA is another one than on a CPU: the same loss and gradients in float32."""
    rng = torch.Generator().manual_seed(1)
    x, w = torch.randn(37, 24, generator=rng), torch.randn(50, 24, generator=rng)
    y = torch.randint(0, 50, (37,), generator=rng)
    y[::5] = -100
    found = []
    for device in ("cpu", gpu):
        parts = [t.to(device).requires_grad_() for t in (x, w)]
        loss, _ = linear_cross_entropy(*parts, y.to(device), chunk=10, cap=20.0, z_loss=1e-3)
        loss.backward()
        found.append([loss.detach().cpu(), *(p.grad.cpu() for p in parts)])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
