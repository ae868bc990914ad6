"""The device of the tensors and the precision of their products. Imports torch only when a function is called."""

from __future__ import annotations

import functools
import os
import platform
import shlex
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from foundry.config import ConfigError

if TYPE_CHECKING:
    import torch

    from foundry.config import Runtime


CUBLAS_WORKSPACE = ":4096:8"  # with it products on several streams do not differ from run to run


@functools.cache
def settle_vector_math() -> None:
    """Has MKL choose its code path for exp, sin and similar functions on one thread; every new MiniLLM calls it.

    Otherwise its threads choose at the same time, during the first large tensor, and in some processes a thread
    computes its part by another code path (MKL 2024.2, an Intel CPU with AMX, two threads): half of the rows of the
    first logsumexp had other last bits in about one process of twenty; the first cos and sin of transformers' rotary
    embedding were so far off that logits differed by 1e-3, and the proof of an export failed.
    """
    import torch

    for dtype in (torch.float32, torch.float64):
        one = torch.ones(1, dtype=dtype, device="cpu")  # also inside `torch.device("meta")`
        for function in (torch.exp, torch.expm1, torch.log, torch.log1p, torch.sin, torch.cos, torch.tanh, torch.erf):
            function(one)


def get_device(name: str = "auto") -> torch.device:
    """The device to work on: `auto` is CUDA, else Apple's MPS, else the CPU.

    Raises:
        ConfigError: if the name is unknown, or this machine has no such device.
    """
    import torch

    mps = torch.backends.mps.is_available()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    kind, colon, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (colon and not (kind == "cuda" and number.isascii() and number.isdigit())):
        raise ConfigError(f"unknown device {name[:80]!r}: use auto, cpu, cuda, cuda:NUMBER or mps")
    if (kind == "cuda" and not torch.cuda.is_available()) or (kind == "mps" and not mps):
        raise ConfigError(f"device {name!r} is not available on this machine: set runtime.device to auto or cpu")
    if number and not int(number[:10]) < torch.cuda.device_count():
        raise ConfigError(
            f"device {name!r} does not exist: this machine has {torch.cuda.device_count()} CUDA devices, counted from 0"
        )
    if kind == "cuda":
        # torch reads it with the first product of a process; a training refuses products that may differ without it.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    return torch.device(name)


def prepare_device(runtime: Runtime) -> torch.device:
    """Prepares a stage or command that does not train: sets `runtime.threads`, returns the device of `runtime.device`.

    Raises:
        ConfigError: if this machine has no such device.
    """
    import torch

    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    return get_device(runtime.device)


def get_device_info(device: torch.device | str = "auto") -> dict[str, str | int | bool]:
    """Facts about a device: kind, name, cores or memory, and whether it multiplies bfloat16 natively."""
    import torch

    device = get_device(device) if isinstance(device, str) else device
    info: dict[str, str | int | bool] = {
        "device": device.type,
        "torch": torch.__version__,
        "bfloat16": native_bfloat16(device),
    }
    if device.type == "cuda":
        p = torch.cuda.get_device_properties(device)
        info |= {
            "name": p.name,
            "memory_bytes": p.total_memory,
            "count": torch.cuda.device_count(),
            "capability": f"{p.major}.{p.minor}",
        }
    else:
        info |= {
            "name": device_name(device),
            "cores": cpu_cores(),
            "isa": torch.backends.cpu.get_cpu_capability(),
        }
    return info


def device_name(device: torch.device) -> str:
    """The name of the GPU or of the processor, as its driver or the kernel reports it."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return processor().name


class Processor(NamedTuple):
    """A processor's name and its instruction sets as the kernel spells them: `avx2`, `avx512_bf16`, `amx_bf16`."""

    name: str
    flags: frozenset[str]


def processor() -> Processor:
    """The processor of this machine; where the kernel does not list its instruction sets, there are none."""
    facts: dict[str, str] = {}
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            for line in f:
                key, _, value = line.partition(":")
                facts.setdefault(key.strip(), value.strip())
    except OSError:
        pass
    name = facts.get("model name") or platform.processor() or platform.machine()
    return Processor(name, frozenset(facts.get("flags", facts.get("Features", "")).split()))


def device_memory(device: torch.device) -> int | None:
    """Bytes of memory that this process may use on a device; None if the system does not report it.

    On a CPU, and on Apple's GPUs, which share its memory, the training processes of this machine get equal shares.
    """
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    return total // local_processes()


def local_processes() -> int:
    """Number of training processes on this machine: one, unless torchrun started this process."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def cpu_cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def native_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 products run in hardware: emulated ones are ten times slower than float32."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return False


def resolve_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of autocast; float32 means no autocast. `auto` never chooses an emulated type."""
    import torch

    if name == "auto":
        if native_bfloat16(device):
            name = "bfloat16"
        else:
            name = "float16" if device.type == "cuda" else "float32"
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[name]


@functools.cache
def quote_library_folders() -> None:
    """Makes torch.compile work where the name of a folder has to be quoted in a command.

    torch 2.13 quotes the folders of headers, but not those of libraries.
    """
    from torch._inductor.cpp_builder import BuildOptionsBase

    folders = BuildOptionsBase.get_libraries_dirs
    BuildOptionsBase.get_libraries_dirs = lambda self: [shlex.quote(folder) for folder in folders(self)]


def cpu_flags() -> str:
    """The instructions of the processor, as the kernel lists them; empty if it does not."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as f:
            return next((line.partition(":")[2].strip() for line in f if line.startswith(("flags", "Features"))), "")
    except OSError:
        return ""


# Instructions for which torch's compiler writes code where the processor has them.
NEWEST = ["-mavx512bf16", "-mamx-tile", "-mamx-bf16"]


def compiler_problem() -> str | None:
    """Why C++ cannot be compiled here; None if it can: with OpenMP, and the processor's newest instructions.

    Compiles a library of one line in 0.1 s.
    """
    newest = NEWEST if platform.machine() in ("x86_64", "AMD64") else []
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "one.cpp")
        source.write_text('#include <omp.h>\nextern "C" int threads() { return omp_get_max_threads(); }\n')
        command = [os.environ.get("CXX", "g++"), "-std=c++20", "-fopenmp", "-shared", "-fPIC", *newest, str(source)]
        try:
            done = subprocess.run([*command, "-o", f"{folder}/one.so"], capture_output=True, text=True, check=False)
        except OSError as e:
            return str(e)
    return _first_error(done.stderr) if done.returncode else None


def compile_problem(device: torch.device) -> str | None:
    """Why torch.compile does not work here (no compiler, no Python headers, ...); None if it works.

    Compiles one tiny function, which takes some seconds the first time.
    """
    import torch

    quote_library_folders()
    try:
        torch.compile(lambda x: x * 2 + 1, dynamic=False)(torch.ones(64, device=device))
    except Exception as e:  # whatever the compiler, the linker or torch raises is the answer
        return _first_error(str(e)) or type(e).__name__
    return None


def _first_error(text: str) -> str:
    """The line of a compiler's output that says what is wrong."""
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [""]
    errors = [line for line in lines if "error:" in line or "cannot find" in line]
    return (errors or lines)[0][:200]


# Dense peaks in TFLOP/s of bfloat16 (or float16) and of float32, from the vendors' data sheets. The key is a part of
# the name that torch reports; the first key that fits counts.
PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 35.0),
    "L40S": (362.0, 91.6),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.2, 82.6),
    "RTX 3090": (71.0, 35.6),
    "V100": (125.0, 15.7),
    "T4": (65.0, 8.1),
}


def peak_flops(device: torch.device, precision: torch.dtype) -> float | None:
    """Peak of the device in floating-point operations per second; None if it is unknown.

    It is known for some GPUs, and measured on a CPU. The measurement multiplies two matrices of 1024 x 1024 for about
    0.2 s, with the present number of threads.
    """
    import time

    import torch

    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        half = precision != torch.float32
        return next((tf[0 if half else 1] * 1e12 for key, tf in PEAKS.items() if key in name), None)
    if device.type != "cpu":
        return None
    n = 1024
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(n, n, generator=generator).to(precision)
    best, end = 0.0, time.perf_counter() + 0.2
    while time.perf_counter() < end:
        begin = time.perf_counter()
        a @ a
        best = max(best, 2 * n**3 / (time.perf_counter() - begin))
    return best
