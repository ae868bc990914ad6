"""DDP and FSDP in a process group of one member, with their real objects; test_distributed has several processes."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from foundry.config import ModelConfig
from foundry.models import MiniLLM
from foundry.training.parallel import (
    Parallel,
    box_of,
    clip_gradients,
    divided_like,
    from_part,
    gradient_norm,
    joined,
    own_part,
)
from foundry.training.pretraining import NextToken
from foundry.utils.checkpoint import Box
from foundry.utils.distributed import World

TINY = ModelConfig(vocab_size=50, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16)
TWO = World(
    0, 2, torch.device("cpu")
)  # what the objects below believe; the group has one member, so that nothing waits


@pytest.fixture(scope="module")
def group():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def made(mode, world=TWO):
    torch.manual_seed(1)
    model = MiniLLM(TINY)
    return model, Parallel(model, world, mode, NextToken(1024, 0.0))


def batch():
    tokens = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(3))
    return tokens, tokens.roll(-1, 1), None


def test_alone_both_modes_are_the_model_as_it_is():
    for mode in ("ddp", "fsdp"):
        model, parallel = made(mode, World(0, 1, torch.device("cpu")))
        assert parallel.mode == "alone" and not parallel.divided and parallel.gradient_scale == 1.0
        loss, nats = parallel.module(*batch())
        expected = model.summed_loss(*batch(), chunk=1024, z_loss=0.0)
        assert loss.item() == expected[0].item() and nats.item() == expected[1].item()
        assert parallel.apply(lambda m, x: (m, x.sum()), torch.ones(2)) == (model, torch.tensor(2.0))
        with parallel.accumulating(False):
            parallel.module(*batch())[0].backward()
        assert isinstance(model.norm.weight.grad, torch.Tensor) and box_of(model.norm.weight) is None


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_every_process_multiplies_by_their_number_since_both_take_the_mean(group, mode):
    assert made(mode)[1].gradient_scale == 2.0 and made(mode)[1].divided == (mode == "fsdp")


def test_ddp_talks_to_the_others_in_the_last_micro_batch_only(group):
    model, parallel = made("ddp")
    assert isinstance(parallel.module, torch.nn.parallel.DistributedDataParallel)
    assert parallel.module.device_ids is None  # on a CPU
    synchronised = []
    for last in (False, True):
        with parallel.accumulating(last):
            synchronised.append(parallel.module.require_backward_grad_sync)
            loss, _ = parallel.module(*batch())
            loss.backward()
    assert synchronised == [False, True]
    twin, alone = made("ddp", World(0, 1, torch.device("cpu")))
    for _ in range(2):
        alone.module(*batch())[0].backward()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    # Validation does not enter DDP's forward pass, in which ranks would wait for each other.
    assert parallel.apply(lambda m: m) is model


def test_fsdp_divides_each_layer_and_the_rest_and_reduces_with_the_last_micro_batch(group, monkeypatch):
    model, parallel = made("fsdp")
    assert all(isinstance(p, DTensor) for p in model.parameters())
    divided = [m for m in parallel.module.modules() if hasattr(m, "set_requires_gradient_sync")]
    assert divided == [parallel.module, *model.layers]
    asked = []
    monkeypatch.setattr(parallel.module, "set_requires_gradient_sync", asked.append)
    for last in (False, True):
        with parallel.accumulating(last):
            parallel.module(*batch())[0].backward()
    assert asked == [False, True]
    twin, _ = made("ddp", World(0, 1, torch.device("cpu")))
    nats = parallel.apply(lambda m, x, y: m.nats(x, y, chunk=7), *batch()[:2])
    torch.testing.assert_close(nats, twin.nats(*batch()[:2], chunk=7))


def test_a_tensor_is_divided_and_joined_as_fsdp_divides_its_parameter(group):
    model, _ = made("fsdp")
    weight = model.layers[0].attention.wq.weight
    values = torch.arange(weight.numel(), dtype=torch.float64).reshape(weight.shape)
    divided = divided_like(values.float(), weight)
    assert isinstance(divided, DTensor) and divided.placements == weight.placements
    assert torch.equal(joined(divided), values.float()) and not isinstance(joined(divided), DTensor)
    assert type(own_part(divided)) is torch.Tensor and torch.equal(own_part(divided), values.float())
    back = from_part(values, weight)  # of another precision, as it may be read
    assert isinstance(back, DTensor) and back.dtype == weight.dtype and back.shape == weight.shape
    assert back.stride() == weight.stride() and torch.equal(joined(back), values.float())
    assert box_of(weight) == Box((0, 0), tuple(weight.shape), tuple(weight.shape))
    plain = torch.ones(2)
    assert all(f(plain) is plain for f in (joined, own_part))
    assert divided_like(plain, plain) is plain and from_part(plain, plain) is plain


def test_the_norm_of_divided_gradients_is_the_global_one(group):
    model, parallel = made("fsdp")
    parallel.module(*batch())[0].backward()
    grads = torch.cat([joined(p.grad).flatten() for p in model.parameters()])
    parts = [p.grad for p in model.parameters()]
    norm = gradient_norm(parts).item()
    clip_gradients(parts, norm, 0.5)
    assert norm == pytest.approx(grads.norm().item(), rel=1e-5) and norm > 0.5
    after = torch.cat([joined(p.grad).flatten() for p in model.parameters()])
    torch.testing.assert_close(after, grads * (0.5 / norm), rtol=1e-4, atol=1e-9)
