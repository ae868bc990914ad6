"""How the arithmetic is done: threads, deterministic kernels, precision, compilation.

These are execution settings: only the last bits of a result depend on them.
"""

from __future__ import annotations

import os
import platform
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from foundry.config import ConfigError, Runtime
from foundry.utils.device import (
    CUBLAS_WORKSPACE,
    compile_problem,
    compiler_problem,
    cpu_cores,
    device_name,
    local_processes,
    native_bfloat16,
    quote_library_folders,
)
from foundry.utils.distributed import World
from foundry.utils.log import get_logger

# What makes torch, oneDNN, MKL, cuBLAS or Apple's kernels compute another way, with other last bits.
_CPU = "ATEN_CPU_CAPABILITY ONEDNN_MAX_CPU_ISA DNNL_MAX_CPU_ISA ONEDNN_CPU_ISA_HINTS DNNL_CPU_ISA_HINTS"
_MATH = "ONEDNN_DEFAULT_FPMATH_MODE DNNL_DEFAULT_FPMATH_MODE MKL_CBWR MKL_ENABLE_INSTRUCTIONS MKL_DEBUG_CPU_TYPE"
_OTHER = (
    "MKL_DYNAMIC CUBLAS_WORKSPACE_CONFIG NVIDIA_TF32_OVERRIDE TORCH_ALLOW_TF32_CUBLAS_OVERRIDE PYTORCH_MPS_FAST_MATH"
)
VARIABLES = (*_CPU.split(), *_MATH.split(), *_OTHER.split())


@dataclass(frozen=True)
class Execution:
    """How a run is carried out on this machine: `runtime`, resolved.

    Attributes:
        micro_rows: sequences of one forward pass.
        why_not: why the run is not compiled; empty if it is.
    """

    precision: torch.dtype
    micro_rows: int
    compiled: bool
    why_not: str = ""

    @property
    def precision_name(self) -> str:
        """float32, bfloat16 or float16."""
        return str(self.precision).removeprefix("torch.")


COMPILE_FROM_FLOPS = 5e12  # compilation takes 10-40 s on two cores, which a shorter run does not gain back


@lru_cache(maxsize=1)
def faster_float32() -> bool:
    """Whether oneDNN should multiply float32 in place of MKL.

    On AMD with AVX512-BF16 it was measured to be twice as fast. It is used only if it keeps the accuracy of float32
    there: on other processors the same setting rounds to bfloat16.
    """
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            info = f.read()
    except OSError:
        return False
    if "AuthenticAMD" not in info or "avx512_bf16" not in info or "amx_bf16" in info:
        return False
    a = torch.randn(256, 256, generator=torch.Generator().manual_seed(0))
    with _onednn(True):
        got = a @ a
    return bool((got - (a.double() @ a.double()).float()).abs().max() < 1e-3)


@contextmanager
def _onednn(on: bool) -> Iterator[None]:
    before = torch.backends.mkldnn.matmul.fp32_precision
    torch.backends.mkldnn.matmul.fp32_precision = "bf16" if on else before
    try:
        yield
    finally:
        torch.backends.mkldnn.matmul.fp32_precision = before


def thread_count(runtime: Runtime) -> int:
    """CPU threads of one training process."""
    return runtime.threads or max(1, cpu_cores() // local_processes())


@contextmanager
def numerics(runtime: Runtime, world: World) -> Iterator[None]:
    """Threads and deterministic kernels for the run; the former settings come back.

    An operation that has no deterministic kernel raises, on Apple's GPUs it warns. On CUDA a mere warning would also
    leave the attention's backward pass as it is by default, which differs from run to run (torch 2.13,
    attention_backward.cu).
    """
    with ExitStack() as stack:
        stack.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(thread_count(runtime))
        stack.callback(
            torch.use_deterministic_algorithms,
            torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
        )
        torch.use_deterministic_algorithms(True, warn_only=world.device.type == "mps")
        # It would write NaN into every fresh tensor, for nothing: no kernel here reads memory that it did not write.
        stack.callback(
            setattr,
            torch.utils.deterministic,
            "fill_uninitialized_memory",
            torch.utils.deterministic.fill_uninitialized_memory,
        )
        torch.utils.deterministic.fill_uninitialized_memory = False
        stack.callback(torch.set_flush_denormal, _flushes_denormals())
        torch.set_flush_denormal(True)
        if world.device.type == "cuda" and "CUBLAS_WORKSPACE_CONFIG" not in os.environ:
            os.environ["CUBLAS_WORKSPACE_CONFIG"] = CUBLAS_WORKSPACE  # who gave the device may not have set it
            stack.callback(os.environ.pop, "CUBLAS_WORKSPACE_CONFIG")
        stack.enter_context(_onednn(world.device.type == "cpu" and faster_float32()))
        yield


def _flushes_denormals() -> bool:
    return (torch.tensor(1e-40) * 1).item() == 0


def precision_reason(runtime: Runtime, precision: torch.dtype, device: torch.device) -> str:
    """Why this precision, in a few words."""
    if runtime.precision != "auto":
        return "as runtime.precision says"
    if precision == torch.float32:
        return f"this {device.type} multiplies bfloat16 only in emulation" if device.type == "cpu" else "MPS"
    return "native bfloat16" if native_bfloat16(device) else "no bfloat16 on this GPU: float16 with a scaled loss"


def wants_compile(
    runtime: Runtime, precision: torch.dtype, flops: float, device: torch.device, ahead: bool = False
) -> tuple[bool, str]:
    """(whether to compile, the reason if not).

    `auto` compiles where compilation works and pays: in bfloat16 (measured on a CPU: 1.4 times the speed; 1.03 in
    float32).

    Args:
        ahead: whether it would be compiled by `ahead` and not by torch.compile.

    Raises:
        ConfigError: for `always` where compilation does not work.
    """
    wish = runtime.compile
    if wish == "never":
        return False, "as runtime.compile says"
    if wish == "auto" and precision == torch.float32:
        return False, "it gains nothing in float32"
    if wish == "auto" and flops < COMPILE_FROM_FLOPS:
        return False, "the run is too short to win it back"
    problem = compiler_problem() if ahead else compile_problem(device)
    if problem and wish == "always":
        raise ConfigError(
            f"torch.compile does not work here: {problem}; fix that or set runtime.compile to auto or never"
        )
    if problem:
        get_logger().warning("not compiled, since torch.compile does not work here: %s", problem)
        return False, "it does not work here"
    return True, ""


def compiled(function: Callable, device: torch.device) -> Callable:
    """The function, compiled for the shapes that it is called with."""
    # The rotations' table is complex; reading it is not compiled, and costs nothing.
    warnings.filterwarnings("ignore", message="Torchinductor does not support code generation for complex")
    quote_library_folders()
    # On CUDA inductor would time several versions of a sum and take the fastest: another one in the next process.
    options = {"options": {"deterministic": True}} if device.type == "cuda" else {}
    return torch.compile(function, dynamic=False, **options)


def environment(runtime: Runtime, world: World, execution: Execution) -> dict[str, Any]:
    """What decides the last bits of a result, besides the run's identity."""
    return {
        "machine": platform.machine(),
        "isa": torch.backends.cpu.get_cpu_capability(),
        "device": world.device.type,
        "device_name": device_name(world.device),
        "torch": torch.__version__,
        "processes": world.size,
        "threads": thread_count(runtime),
        "precision": str(execution.precision),
        "compiled": execution.compiled,
        "micro_rows": execution.micro_rows,
        "parallel": runtime.parallel if world.size > 1 else "alone",
        "loss_chunk": runtime.loss_chunk,
        "recompute": runtime.recompute,
        "float32": "onednn" if world.device.type == "cpu" and faster_float32() else "default",
        **variables(),
    }


def variables() -> dict[str, str | None]:
    """The environment variables that choose other kernels in torch and its libraries; None: not set, or as always."""
    found = {name: os.environ.get(name) for name in VARIABLES}
    if found["CUBLAS_WORKSPACE_CONFIG"] == CUBLAS_WORKSPACE:
        found["CUBLAS_WORKSPACE_CONFIG"] = None  # every run on CUDA has it
    return found
