"""How the arithmetic is done: what a run sets and puts back, and what it records of its machine."""

import io
import json
import os
import platform
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
import torch._inductor.config
from torch.overrides import TorchFunctionMode

from foundry.chat.loader import ChatLoader
from foundry.chat.pairs import PairLoader
from foundry.chat.rl import RolloutLoader
from foundry.config import ConfigError, ModelConfig, Runtime, TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.training import Trainer, setup
from foundry.training import numerics as module
from foundry.training.numerics import (
    VARIABLES,
    Execution,
    compiled,
    environment,
    faster_float32,
    numerics,
    precision_reason,
    thread_count,
    wants_compile,
)
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


@pytest.mark.parametrize("kind", ["cpu", "cuda", "mps"])
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
        "warn_only": kind == "mps",  # on CUDA a warning would leave the attention as it is by default
        "fill": False,
        "flushes denormals": True,
    }
    assert {k: inside[k] for k in expected} == expected
    assert inside["cublas"] == (":4096:8" if kind == "cuda" else None)


@pytest.mark.parametrize(("kind", "onednn"), [("cpu", True), ("cpu", False), ("cuda", True)])
def test_onednn_multiplies_float32_on_a_cpu_where_that_is_faster_and_cublas_keeps_its_own_setting(
    defaults, monkeypatch, kind, onednn
):
    monkeypatch.setattr(module, "faster_float32", lambda: onednn)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    before = settings()
    with numerics(Runtime(threads=1), World(0, 1, torch.device(kind))):
        inside = settings()
    assert inside["cublas"] == ":16:8" and settings() == before
    assert inside["onednn"] == ("bf16" if kind == "cpu" and onednn else before["onednn"])


class Rounded(TorchFunctionMode):
    """What some processors do with float32 under oneDNN's setting: its products are those of bfloat16."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        wide = func is torch.Tensor.matmul and out.dtype == torch.float32
        return out.bfloat16().float() if wide else out


@pytest.mark.parametrize(
    ("cpuinfo", "product", "faster"),
    [
        ("AuthenticAMD flags: avx512_bf16", nullcontext, True),
        ("AuthenticAMD flags: avx512_bf16", Rounded, False),
        ("AuthenticAMD flags: avx2", nullcontext, False),
        ("AuthenticAMD flags: avx512_bf16 amx_bf16", nullcontext, False),
        ("GenuineIntel flags: avx512_bf16", nullcontext, False),
        ("GenuineIntel flags: avx2", nullcontext, False),
        (None, nullcontext, False),
    ],
)
def test_onednn_is_taken_for_float32_on_amd_with_bfloat16_if_it_keeps_the_accuracy(
    monkeypatch, cpuinfo, product, faster
):
    def opened(path, encoding):
        assert path == "/proc/cpuinfo"
        if cpuinfo is None:
            raise FileNotFoundError(path)
        return io.StringIO(cpuinfo)

    asked = []
    monkeypatch.setattr(module, "open", opened, raising=False)
    monkeypatch.setattr(module, "_onednn", lambda on: (asked.append(on), product())[1])
    assert faster_float32.__wrapped__() is faster
    assert asked == [True] * (cpuinfo == "AuthenticAMD flags: avx512_bf16")


def test_a_process_has_its_share_of_the_cores_and_one_at_least(monkeypatch):
    monkeypatch.setattr(module, "cpu_cores", lambda: 7)
    found = []
    for processes in (1, 2, 7, 9):
        monkeypatch.setattr(module, "local_processes", lambda n=processes: n)
        found.append((thread_count(Runtime(threads=0)), thread_count(Runtime(threads=5))))
    assert found == [(7, 5), (3, 5), (1, 5), (1, 5)]


def test_the_reason_of_a_precision(monkeypatch):
    def reason(kind, precision, native, asked="auto"):
        monkeypatch.setattr(module, "native_bfloat16", lambda device: native)
        return precision_reason(Runtime(precision=asked), precision, torch.device(kind))

    assert reason("cpu", torch.float32, False, "float32") == "as runtime.precision says"
    assert reason("cpu", torch.float32, False) == "this cpu multiplies bfloat16 only in emulation"
    assert reason("mps", torch.float32, False) == "MPS"
    assert reason("cuda", torch.bfloat16, True) == "native bfloat16"
    assert reason("cuda", torch.float16, False) == "no bfloat16 on this GPU: float16 with a scaled loss"


@pytest.mark.parametrize(
    ("wish", "precision", "flops", "problem", "expected"),
    [
        ("never", torch.bfloat16, 1e18, None, (False, "as runtime.compile says")),
        ("auto", torch.float32, 1e18, None, (False, "it gains nothing in float32")),
        ("auto", torch.bfloat16, 4_999_999_999_999, None, (False, "the run is too short to win it back")),
        ("auto", torch.bfloat16, 5_000_000_000_000, None, (True, "")),
        ("auto", torch.bfloat16, 5_000_000_000_000, "no compiler", (False, "it does not work here")),
        ("always", torch.float32, 1.0, None, (True, "")),
        ("always", torch.bfloat16, 1.0, "no compiler", None),
    ],
)
@pytest.mark.parametrize("ahead", [False, True])
def test_when_a_run_is_compiled(monkeypatch, ahead, wish, precision, flops, problem, expected):
    monkeypatch.setattr(module, "compiler_problem" if ahead else "compile_problem", lambda *device: problem)
    monkeypatch.setattr(module, "compile_problem" if ahead else "compiler_problem", lambda *device: "not asked")
    runtime, device = Runtime(compile=wish), torch.device("cpu")
    if expected is None:
        with pytest.raises(ConfigError, match="does not work here: no compiler"):
            wants_compile(runtime, precision, flops, device, ahead)
    else:
        assert wants_compile(runtime, precision, flops, device, ahead) == expected


def test_batches_of_many_widths_are_compiled_only_where_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(setup, "wants_compile", lambda *a: (True, ""))

    def made(wish, vary):
        loader, plan = SimpleNamespace(widths_vary=vary), SimpleNamespace(flops=1e18)
        made = setup.resolve(
            Runtime(compile=wish), World(0, 1, torch.device("cpu")), torch.bfloat16, 1, plan, loader, None
        )
        return made.compiled, made.why_not

    assert made("auto", False) == made("always", True) == (True, "")
    assert made("auto", True) == (False, "each width of its batches would be compiled by itself")
    assert PairLoader.widths_vary and RolloutLoader.widths_vary
    assert not ChatLoader.widths_vary and not DataLoader.widths_vary


def test_compiling_is_for_fixed_shapes_in_folders_of_any_name_and_without_a_warning_of_complex_numbers(monkeypatch):
    done = []
    monkeypatch.setattr(module, "quote_library_folders", lambda: done.append("quoted"))
    monkeypatch.setattr(torch, "compile", lambda f, **options: (done.append(options), f)[1])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert compiled(len, torch.device("cpu")) is len
        warnings.warn("Torchinductor does not support code generation for complex operators", stacklevel=1)
    assert done == ["quoted", {"dynamic": False}] and not seen


def test_on_cuda_the_compiler_does_not_choose_by_the_clock(monkeypatch):
    """The fastest version of a sum may be another one in the next process; torch knows the option by this name."""
    assert not torch._inductor.config.deterministic
    options = {}
    monkeypatch.setattr(module, "quote_library_folders", lambda: None)
    monkeypatch.setattr(torch, "compile", lambda f, **given: (options.update(given), f)[1])
    compiled(len, torch.device("cuda"))
    assert options == {"dynamic": False, "options": {"deterministic": True}}


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize(("kind", "onednn"), [("cpu", True), ("cpu", False), ("cuda", True)])
def test_the_environment_of_a_run(monkeypatch, size, kind, onednn):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    monkeypatch.setattr(module, "faster_float32", lambda: onednn)
    monkeypatch.setattr(module, "device_name", lambda device: f"a {device.type}")
    runtime = Runtime(threads=3, parallel="fsdp", loss_chunk=77, recompute=True)
    found = environment(runtime, World(0, size, torch.device(kind)), Execution(torch.bfloat16, 5, True))
    assert found == {
        **dict.fromkeys(VARIABLES),
        "MKL_CBWR": "AVX2",
        "machine": platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "device": kind,
        "device_name": f"a {kind}",
        "torch": torch.__version__,
        "processes": size,
        "threads": 3,
        "precision": "torch.bfloat16",
        "compiled": True,
        "micro_rows": 5,
        "parallel": "fsdp" if size == 2 else "alone",
        "loss_chunk": 77,
        "recompute": True,
        "float32": "onednn" if kind == "cpu" and onednn else "default",
    }


def test_an_operation_without_a_deterministic_kernel_is_refused_on_the_cpu(defaults):
    with numerics(Runtime(threads=1), World(0, 1, torch.device("cpu"))):
        with pytest.raises(RuntimeError, match="does not have a deterministic implementation"):
            torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))


def started(shards, state, **runtime):
    options = {"device": "cpu", "precision": "float32", "threads": 1, **runtime}
    trainer = Trainer.from_shards(MODEL, TRAIN, shards, runtime=Runtime(**options), state=state)
    trainer.run_folder.record(environment(trainer.runtime, trainer.world, trainer.execution))
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


def test_a_variable_that_every_run_on_cuda_has_is_not_told(monkeypatch):
    found = []
    for value in (":4096:8", ":16:8"):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", value)
        found.append(module.variables()["CUBLAS_WORKSPACE_CONFIG"])
    assert found == [None, ":16:8"]


def test_the_recorded_environment_names_the_device_and_the_threads_of_one_process(shards, tmp_path, monkeypatch):
    monkeypatch.setattr("foundry.training.numerics.cpu_cores", lambda: 8)
    assert started(shards, tmp_path / "one", threads=0)["threads"] == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")  # as torchrun sets it, of four processes
    found = started(shards, tmp_path / "four", threads=0)
    assert found["threads"] == 2 and found["device_name"] == device_name(torch.device("cpu")) != ""
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    assert device_name(torch.device("cuda")) == "NVIDIA H100 80GB HBM3"
