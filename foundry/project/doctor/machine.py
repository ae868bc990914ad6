"""What `foundry doctor` looks at on the machine: versions, packages, the device, its arithmetic, the compiler."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import os
import platform
import re
import shutil
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from foundry.config import ConfigError, MissingPackageError, ModelConfig, Runtime
from foundry.config.version import VERSION
from foundry.project.doctor.finding import Finding, note, ok, problem

OLDEST, NEWEST = (3, 11), (3, 13)  # of Python; `requires-python` of pyproject.toml
# A module of each extra that `make repro` installs.
FEATURES = {
    "data": "pandera",
    "evaluate": "matplotlib",
    "export": "transformers",
    "llamacpp": "xllamacpp",
    "serve": "fastapi",
    "chat": "prompt_toolkit",
    "track": "mlflow",
    "dvc": "dvc",
}
SHOWN = 5  # packages of a list that may be long
# How far the logits of a new model, which are below 0.4, may be from those in float32 on the CPU. bfloat16 moves them
# by 0.0045 (an Intel Xeon with AMX); a wrong kernel moves them by as much as they are.
TOLERANCE = 0.02


def versions() -> Iterator[Finding]:
    """Python and git."""
    here = sys.version_info[:2]
    seen = f"Foundry {VERSION}, Python {platform.python_version()}, {platform.platform()}"
    if OLDEST <= here <= NEWEST:
        yield ok("python", seen)
    else:
        wanted = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
        yield problem("python", seen, f"Python {wanted} is needed: make PYTHON=python3.12 setup")
    if git := shutil.which("git"):
        yield ok("git", git)
    else:
        yield problem("git", "git is not installed", "install it: DVC and the record of every model need it")


def packages(root: Path) -> Iterator[Finding]:
    """The packages of the features, and their versions beside those of `constraints.txt`."""
    missing = {extra: module for extra, module in FEATURES.items() if find_spec(module) is None}
    if missing:
        state = problem if (root / "dvc.yaml").exists() else note
        extra, module = next(iter(missing.items()))
        more = f"; in all, the extras {', '.join(missing)} are missing: make setup" if len(missing) > 1 else ""
        yield state(
            "packages", f"not installed: {', '.join(missing.values())}", f"{MissingPackageError(module, extra)}{more}"
        )
    file = root / "constraints.txt"
    if not file.exists():
        yield ok("packages", f"torch {importlib.metadata.version('torch')}; there is no {file.name} to compare with")
        return
    pins = re.findall(r"^([\w.-]+)==(\S+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    different, same = [], 0
    for name, pinned in pins:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            version = importlib.metadata.version(name)
            if version.partition("+")[0] == pinned.partition("+")[0]:  # "+cpu" and "+cu130" are builds of one version
                same += 1
            else:
                different.append(f"{name} {version} (tested: {pinned})")
    if different:
        shown = ", ".join(different[:SHOWN]) + (f" and {len(different) - SHOWN} more" if different[SHOWN:] else "")
        yield note(
            "packages",
            f"other versions than those of {file.name}: {shown}",
            "make clean setup installs the tested ones",
        )
    else:
        yield ok("packages", f"the {same} installed packages have the versions of {file.name}")


def device(runtime: Runtime) -> Iterator[Finding]:
    """The device of `runtime.device`, its memory and its precision."""
    import torch

    from foundry.utils.device import get_device, get_device_info, resolve_precision

    if shutil.which("nvidia-smi") and torch.version.cuda is None:
        advice = "install torch from the index for CUDA: pip install --force-reinstall torch==2.13.0"
        yield note("device", f"there is an NVIDIA driver, but torch {torch.__version__} is a build for the CPU", advice)
    try:
        here = get_device(runtime.device)
    except ConfigError as e:
        yield problem("device", str(e), "set runtime.device: auto in params.yaml")
        return
    info = get_device_info(here)
    parts = [str(info["device"]), str(info["name"])]
    parts += [f"{info['cores']} cores, {info['isa']}"] if "cores" in info else []
    parts += [f"{int(info['memory_bytes']) / 2**30:.1f} GiB"] if "memory_bytes" in info else []
    yield ok("device", ", ".join([*parts, f"torch {info['torch']}"]))
    precision = str(resolve_precision(runtime.precision, here)).removeprefix("torch.")
    if info["bfloat16"]:
        yield ok("bf16", f"the device multiplies bfloat16; training uses {precision}")
    elif precision == "bfloat16":
        yield note(
            "bf16", "bfloat16 is emulated here, about ten times slower than float32", "set runtime.precision: auto"
        )
    else:
        yield ok("bf16", f"the device does not multiply bfloat16; training uses {precision}")


def compilation(runtime: Runtime) -> Iterator[Finding]:
    """Whether training can be compiled, and why not: first the compiler, then torch.compile."""
    from foundry.utils.device import compile_problem, compiler_problem, get_device

    if runtime.compile == "never":
        yield ok("compile", "runtime.compile is never: nothing is compiled")
        return
    fails = problem if runtime.compile == "always" else note
    if reason := compiler_problem():
        advice = (
            "install g++ 11 or newer with OpenMP (Debian and Ubuntu: apt-get install g++), or set CXX; without it "
            "training is slower"
        )
        yield fails("compile", f"C++ cannot be compiled: {reason}", advice)
    elif reason := compile_problem(get_device(runtime.device)):
        advice = (
            "install Python's headers (Debian and Ubuntu: apt-get install python3-dev); pre-training on one CPU "
            "compiles without torch.compile, everything else is slower"
        )
        yield fails("compile", f"C++ compiles, torch.compile does not work: {reason}", advice)
    else:
        yield ok("compile", f"{os.environ.get('CXX', 'g++')} and torch.compile work")


def forward_pass(runtime: Runtime) -> Iterator[Finding]:
    """A forward pass of a new, tiny model on the device, beside the same one in float32 on the CPU."""
    import torch

    from foundry.models import MiniLLM
    from foundry.utils.device import get_device, resolve_precision

    where = get_device(runtime.device)
    precision = resolve_precision(runtime.precision, where)
    cfg = ModelConfig(vocab_size=256, dim=64, n_layers=2, n_heads=4, n_kv_heads=2, ffn_dim=128, max_seq_len=64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = MiniLLM(cfg).eval()
        tokens = torch.randint(cfg.vocab_size, (2, 64))
        expected, loss = model(tokens, tokens.roll(-1, 1))
        with torch.autocast(where.type, precision, enabled=precision != torch.float32):
            found, _ = model.to(where)(tokens.to(where))
    difference = (found.float().cpu() - expected).abs().max().item()
    seen = (
        f"{where.type} in {str(precision).removeprefix('torch.')}: logits within {difference:.2g} of float32 on the CPU"
    )
    if difference <= TOLERANCE and abs(loss.item() - math.log(cfg.vocab_size)) < 0.3:
        yield ok("forward", f"{seen}; first loss {loss.item():.3f}, ln V = {math.log(cfg.vocab_size):.3f}")
    else:
        advice = "set runtime.precision: float32 or runtime.device: cpu; if it is still wrong, install torch again"
        yield problem(
            "forward", f"{seen}; first loss {loss.item():.3f}, expected {math.log(cfg.vocab_size):.3f}", advice
        )
