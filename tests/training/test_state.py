"""The state of training: all that is saved is restored; the window that jumps of the loss are measured against."""

import random

import numpy as np
import pytest
import torch

from foundry.config import CheckpointError, ModelConfig, TrainConfig
from foundry.models import MiniLLM
from foundry.training.optimizer import Optimizers
from foundry.training.state import TrainState
from foundry.utils.checkpoint import Box

TINY = ModelConfig(vocab_size=50, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=16)


def made(seed, scale=2.0):
    torch.manual_seed(seed)
    model = MiniLLM(TINY)
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return TrainState(model, Optimizers(model, TrainConfig()), scaler, {"seed": 3})


def stepped(state):
    x = torch.randint(0, 50, (2, 16), generator=torch.Generator().manual_seed(5))
    state.model(x, x)[1].backward()
    state.optimizers.step()
    return state


def drawn():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_all_that_changes_in_training_comes_back(monkeypatch):
    """The second number of a pair of normal ones included, which Python and NumPy keep for the next call."""
    first = stepped(made(1, scale=8.0))
    first.step, first.seconds, first.window = 7, 12.5, [1.0, 2.0]
    first.curve, first.validations = [{"step": 1, "loss": 4.0}], [{"step": 7, "val_loss": 3.0}]
    random.seed(1)
    np.random.seed(2)
    torch.manual_seed(3)
    drawn()
    tensors, values = first.state_dict()
    expected = drawn()
    first.curve.append({"step": 2})  # the lists of a saved state are its own
    second = made(2)
    random.seed(9)
    np.random.seed(9)
    torch.manual_seed(9)
    second.load_state_dict(tensors, values)
    assert drawn() == expected
    assert (second.step, second.seconds, second.window) == (7, 12.5, [1.0, 2.0])
    assert (second.curve, second.validations) == ([{"step": 1, "loss": 4.0}], [{"step": 7, "val_loss": 3.0}])
    assert second.scaler.get_scale() == 8.0 and values["identity"] == {"seed": 3}
    again, _ = second.state_dict()
    assert again.keys() == tensors.keys() and "rng/torch" in again
    assert all(torch.equal(again[k], v) for k, v in tensors.items() if not k.startswith("rng/"))
    assert not any(k.startswith("rng/cuda") for k in tensors)
    assert first.boxes() == {}


def test_a_tensor_too_many_or_too_few_is_refused():
    tensors, values = stepped(made(1)).state_dict()
    for wrong in (
        {k: v for k, v in tensors.items() if k != "model/norm.weight"},
        {**tensors, "model/extra": torch.ones(1)},
        {**tensors, "optimizer/extra/momentum": torch.ones(1)},
    ):
        with pytest.raises(CheckpointError, match="does not fit this model"):
            made(2).load_state_dict(wrong, values)


def test_the_generator_of_the_gpu_of_the_model_comes_back_and_no_other_gpu_is_touched(monkeypatch):
    """A GPU is stood in for. A CPU resumes without its state, and a GPU from a checkpoint of a CPU."""
    gpu, states, restored = torch.device("cuda", 1), {1: torch.tensor([3, 4], dtype=torch.uint8)}, []
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: states[device.index])
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: restored.append((state.tolist(), device)))
    of_a_cpu = made(1).state_dict()
    first, second = made(1), made(2)
    first.device = second.device = gpu
    tensors, values = first.state_dict()
    assert torch.equal(tensors["rng/cuda"], states[1]) and "rng/cuda" not in of_a_cpu[0]
    second.load_state_dict(tensors, values)
    assert restored == [([3, 4], gpu)]
    second.load_state_dict(*of_a_cpu)
    made(2).load_state_dict(tensors, values)
    assert len(restored) == 1


def test_the_part_of_a_tensor_that_a_process_wants_is_its_weights():
    state = made(1)
    box = Box((4, 0), (4, 32), (8, 32))
    state._boxes = {"layers.0.w": box}
    assert state.wanted("model/layers.0.w", (8, 32)) is state.wanted("optimizer/layers.0.w/momentum", (8, 32)) is box
    assert state.wanted("optimizer/layers.0.w/step", ()) is None  # a number is no part of anything
    assert state.wanted("model/layers.1.w", (8, 32)) is None and state.wanted("rng/torch", (5056,)) is None


def test_a_jump_is_told_from_the_65th_loss_on_and_only_above_six_deviations():
    state = made(1)
    for i in range(63):
        assert state.watch(1e6 if i == 5 else 2.0 * (i % 2)) is None  # few losses say nothing of what is usual
    state.window = [0.0, 2.0] * 31 + [0.0]
    assert state.watch(2.0) is None and len(state.window) == 64  # mean 1, standard deviation 1
    assert state.watch(7.0) is None and state.window == [2.0, *[0.0, 2.0] * 31, 7.0]
    state.window = [0.0, 2.0] * 32
    assert state.watch(7.5) == 6.5
    state.window = [3.0] * 64
    assert state.watch(9.0) is None  # no deviation to compare with
