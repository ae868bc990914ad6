"""How the arithmetic is done: what a run sets and puts back, and what it records of its machine."""

import json
import os

import pytest
import torch

from foundry.config import ModelConfig, Runtime, TrainConfig
from foundry.training import Trainer
from foundry.training.numerics import VARIABLES, numerics
from foundry.utils.device import device_name
from foundry.utils.distributed import World
from foundry.utils.log import get_logger

MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=2, tokens_per_step=256, warmup_steps=0, eval_interval=2, eval_tokens=64)


def settings():
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "fill": torch.utils.deterministic.fill_uninitialized_memory,
        "onednn": torch.backends.mkldnn.matmul.fp32_precision,
        "flushes denormals": (torch.tensor(1e-40) * 1).item() == 0,
        "cublas": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    }


@pytest.fixture
def defaults():
    """Whatever a test leaves, the next one starts from torch's own settings."""
    before = settings()
    yield
    torch.set_num_threads(before["threads"])
    torch.use_deterministic_algorithms(before["deterministic"], warn_only=before["warn_only"])
    torch.utils.deterministic.fill_uninitialized_memory = before["fill"]
    torch.set_flush_denormal(before["flushes denormals"])


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
@pytest.mark.parametrize("other", [False, True], ids=["torch's own settings", "other settings"])
def test_all_that_numerics_sets_comes_back_also_after_an_error(defaults, monkeypatch, kind, other):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(other, warn_only=other)
    torch.utils.deterministic.fill_uninitialized_memory = not other
    torch.set_flush_denormal(other)
    before = settings()
    with pytest.raises(KeyError), numerics(Runtime(threads=1), World(0, 1, torch.device(kind))):
        inside = settings()
        raise KeyError
    assert settings() == before
    expected = {
        "threads": 1,
        "deterministic": True,
        "warn_only": kind == "cuda",
        "fill": False,
        "flushes denormals": True,
    }
    assert {k: inside[k] for k in expected} == expected
    assert inside["cublas"] == (":4096:8" if kind == "cuda" else None)


def test_an_operation_without_a_deterministic_kernel_is_refused_on_the_cpu(defaults):
    with numerics(Runtime(threads=1), World(0, 1, torch.device("cpu"))):
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))


def started(shards, state, **runtime):
    options = {"device": "cpu", "precision": "float32", "threads": 1, **runtime}
    trainer = Trainer.from_shards(MODEL, TRAIN, shards, runtime=Runtime(**options), state=state)
    trainer._check_folder()
    return json.loads((trainer.folder / "environment.json").read_text())


@pytest.mark.parametrize("name", ["ONEDNN_MAX_CPU_ISA", "MKL_CBWR", "ATEN_CPU_CAPABILITY"])
def test_a_variable_that_chooses_other_kernels_is_recorded_and_warned_of(shards, tmp_path, monkeypatch, caplog, name):
    get_logger().propagate = True
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    assert started(shards, tmp_path / "a")[name] is None and not caplog.text
    monkeypatch.setenv(name, "AVX2")
    started(shards, tmp_path / "a")
    assert f"other execution settings ({name} None → AVX2): it resumes" in caplog.text
    caplog.clear()
    assert started(shards, tmp_path / "b")[name] == "AVX2"
    assert f"the environment sets {name}=AVX2" in caplog.text


def test_the_recorded_environment_names_the_device_and_the_threads_of_one_process(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("foundry.training.numerics.cpu_cores", lambda: 8)
    assert started(shards, tmp_path / "one", threads=0)["threads"] == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun sets it, of four processes
    found = started(shards, tmp_path / "four", threads=0)
    assert found["threads"] == 2 and found["device_name"] == device_name(torch.device("cpu")) != ""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert device_name(torch.device("cuda")) == "NVIDIA H100 80GB HBM3"
