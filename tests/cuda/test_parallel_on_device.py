"""DDP and FSDP2 in a process group of one member, with their real objects: over NCCL on a GPU, over gloo on a CPU.

`test_resume_on_device` starts as many processes as there are GPUs.
"""

import pytest
import torch
import torch.distributed as dist
from small_run import MODEL, TRAIN
from torch.distributed.tensor import DTensor

from foundry.config import Runtime
from foundry.models import MiniLLM
from foundry.training.numerics import Execution, numerics
from foundry.training.optimizer import Optimizers
from foundry.training.parallel import Parallel, gradient_norm, joined
from foundry.training.pretraining import NextToken
from foundry.training.setup import forward_of
from foundry.training.state import TrainState
from foundry.utils.checkpoint import Box, load_checkpoint, read_checkpoint, save_checkpoint, write_marker, write_part
from foundry.utils.distributed import World


@pytest.fixture
def group(device):
    where = torch.device("cuda", 0) if device.type == "cuda" else device
    how = {"backend": "gloo"}
    if where.type == "cuda":
        torch.cuda.set_device(where)
        how = {"backend": "cpu:gloo,cuda:nccl", "device_id": where}
    store = dist.TCPStore("127.0.0.1", 0, world_size=1, is_master=True)
    dist.init_process_group(store=store, rank=0, world_size=1, **how)
    with numerics(Runtime(device=where.type, threads=1), World(0, 1, where)):
        yield where
    dist.destroy_process_group()


def made(where, mode, precision=torch.float32, compiled=False):
    """(model, the loss through its parallel form): the objects believe that there is a second process."""
    torch.manual_seed(1)
    model = MiniLLM(MODEL.model_copy(update={"zero_init": False})).to(where)
    world = World(0, 1 if mode == "alone" else 2, where)
    parallel = Parallel(model, world, mode, NextToken(1024, 0.0), precision)
    return model, parallel, forward_of(parallel, world, Execution(precision, 4, compiled))


def batch(where):
    tokens = torch.randint(0, 400, (4, 160), generator=torch.Generator().manual_seed(3)).to(where)
    return tokens, tokens.roll(-1, 1), None


def gradients(where, mode, *how):
    """(loss, the gradients of two micro-batches)."""
    model, parallel, forward = made(where, mode, *how)
    for last in (False, True):
        with parallel.accumulating(last):
            loss, _ = forward(*batch(where))
            loss.backward()
    return loss.item(), {k: joined(p.grad) for k, p in model.named_parameters()}


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_gradients_are_those_of_one_process(group, mode):
    alone, divided = gradients(group, "alone"), gradients(group, mode)
    assert divided[0] == alone[0]
    for name, grad in alone[1].items():
        torch.testing.assert_close(divided[1][name], grad, rtol=1e-5, atol=1e-5)


def test_fsdp_exchanges_the_weights_of_layers_in_bfloat16_and_their_gradients_in_float32(group):
    """The loss stays that of autocast: the products had these weights before, only the norms' are rounded now."""
    alone, divided = (gradients(group, mode, torch.bfloat16) for mode in ("alone", "fsdp"))
    assert divided[0] == pytest.approx(alone[0], rel=1e-3)
    assert all(g.dtype == torch.float32 for g in divided[1].values())
    for name, grad in alone[1].items():
        assert (divided[1][name] - grad).norm() < 0.03 * grad.norm(), name
    model, _, forward = made(group, "fsdp", torch.bfloat16)
    assert all(isinstance(p, DTensor) and p.dtype == torch.float32 for p in model.parameters())
    seen = {}
    for name, module in model.named_modules():
        if hasattr(module, "weight"):
            module.register_forward_pre_hook(lambda m, _, name=name: seen.__setitem__(name, m.weight.dtype))
    forward(*batch(group))
    assert seen["layers.1.ffn.w_down"] == seen["layers.0.attention_norm"] == torch.bfloat16
    assert seen["tok_embeddings"] == seen["norm"] == torch.float32


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
def test_both_are_compiled(group, mode):
    eager, compiled = (gradients(group, mode, torch.bfloat16, c) for c in (False, True))
    assert compiled[0] == pytest.approx(eager[0], rel=1e-3)
    for name, grad in eager[1].items():
        assert (compiled[1][name] - grad).norm() < 0.03 * grad.norm(), name


def trained_state(where, mode):
    """A state after one step of both optimizers."""
    model, _, forward = made(where, mode)
    optimizers = Optimizers(model, TRAIN)
    forward(*batch(where))[0].backward()
    assert gradient_norm([p.grad for p in model.parameters()]).item() > 0
    optimizers.set_lr(4)
    optimizers.step()
    return TrainState(model, optimizers, torch.amp.GradScaler(where.type, enabled=False), {})


def learnt(state):
    """Weights and moments, complete and on the CPU."""
    named = {**state.model.state_dict(), **state.optimizers.tensors()}
    return {k: joined(v).detach().cpu() for k, v in named.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("after", ["alone", "fsdp"])
@pytest.mark.parametrize("before", ["alone", "fsdp"])
def test_a_checkpoint_is_read_into_another_division_bit_for_bit(group, tmp_path, before, after):
    first = trained_state(group, before)
    expected, (tensors, values) = learnt(first), first.state_dict()
    boxes = first.boxes()
    assert bool(boxes) == (before == "fsdp") and all(t.device.type == "cpu" for t in tensors.values())
    write_marker(tmp_path, [write_part(tmp_path, 0, tensors, boxes)], values)
    model, _, _ = made(group, after)
    second = TrainState(model, Optimizers(model, TRAIN), torch.amp.GradScaler(group.type, enabled=False), {})
    assert not same(learnt(second), expected)
    second.load_state_dict(*read_checkpoint(tmp_path, second.wanted))
    assert same(learnt(second), expected)


def test_the_parts_of_three_processes_are_joined_on_the_device(group, tmp_path):
    """As three processes would have written them: each has some rows of every matrix, the last one fewer."""
    first = trained_state(group, "alone")
    expected, (tensors, values) = learnt(first), first.state_dict()
    contents = []
    for rank in range(3):
        parts, boxes = {}, {}
        for name, tensor in tensors.items():
            if not name.startswith("rng/") and tensor.ndim:
                chunks = tensor.chunk(3)
                begin = sum(len(c) for c in chunks[:rank])
                part = chunks[rank] if rank < len(chunks) else tensor[:0]
                shape = tuple(tensor.shape)
                parts[name], boxes[name] = part, Box((begin, *(0 for _ in shape[1:])), tuple(part.shape), shape)
            else:
                parts[name] = tensor
        contents.append(write_part(tmp_path, rank, parts, boxes))
    write_marker(tmp_path, contents, values)
    second = trained_state(group, "fsdp")
    second.load_state_dict(*read_checkpoint(tmp_path, second.wanted))
    assert same(learnt(second), expected)


def test_a_checkpoint_of_one_device_is_read_on_the_other(group, tmp_path):
    first = trained_state(group, "alone")
    save_checkpoint(tmp_path / "c", *first.state_dict())
    tensors, values = load_checkpoint(tmp_path / "c")
    assert ("rng/cuda" in tensors) == (group.type == "cuda")
    second = trained_state(torch.device("cpu"), "alone")
    second.load_state_dict(tensors, values)
    assert same(learnt(second), learnt(first))
    second.optimizers.step()  # its step counts are where this device's optimizer wants them


@pytest.mark.parametrize("flag", [False, True])
def test_a_decision_of_all_processes_is_exchanged_without_the_gpu(group, flag, monkeypatch):
    seen, reduce = [], dist.all_reduce
    monkeypatch.setattr(dist, "all_reduce", lambda t, **how: (seen.append(t.device.type), reduce(t, **how))[1])
    assert World(0, 2, group).any(flag) is flag and seen == ["cpu"]
    total = World(0, 2, group).sum(torch.ones(1, dtype=torch.float64, device=group))
    assert total.item() == 1 and seen[1] == group.type
