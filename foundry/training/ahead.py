"""The step of a training on one CPU as compiled code, kept in `.foundry/compile/`.

The forward and the backward pass of a micro-batch are traced into one graph of tensor operations, which AOTInductor
turns into one shared library. A file's name has two hashes: of everything that the machine code depends on, the graph
included, and of its own content. So a library is never used for another model, processor or version of torch, a
damaged one is compiled again, and the folder may be copied, moved or removed. A process that finds its library only
traces, which takes half a second (docs/en/training.md has the seconds of a start).

`torch.compile` would trace with Dynamo and build one library for each fused kernel; on two cores that took 37 s, and
5.5 s in every later process. It still compiles what is not traced here: GPUs, several processes, other losses.
"""

from __future__ import annotations

import gc
import hashlib
import os
import platform
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from foundry.config import Runtime
from foundry.training.numerics import variables
from foundry.training.parallel import Applied
from foundry.training.pretraining import NextToken
from foundry.training.protocols import Loss
from foundry.utils.device import cpu_flags, quote_library_folders
from foundry.utils.distributed import World
from foundry.utils.files import atomic_write, sha256_file, sha256_json
from foundry.utils.locks import exclusive
from foundry.utils.log import get_logger

# Of the compiler, and part of a library's name.
OPTIONS = {
    "deterministic": True,
    "cpp.vec_isa_ok": True,  # `compiler_problem` has proved it
    # A precompiled header is worth its 150 MB only to somebody who compiles dozens of files.
    "aot_inductor.precompile_headers": False,
    # The wrapper only calls the kernels. Not optimized, it is compiled in 5.0 s instead of 7.5 s.
    "aot_inductor.compile_wrapper_opt_level": "O0",
    "aot_inductor.enable_line_tables": False,
}


def compiles_ahead(world: World, runtime: Runtime, precision: torch.dtype, loss: Loss) -> bool:
    """Whether a compiled run has its step from a library: on one CPU, with the loss of pre-training.

    Not if activations are recomputed, since one graph of both passes would keep them, and not in float16, whose loss
    is scaled.
    """
    alone = world.size == 1 and world.device.type == "cpu"
    return alone and not runtime.recompute and precision != torch.float16 and type(loss) is NextToken


class Library:
    """Adds the gradients of a micro-batch to those of the parameters.

    Args:
        module: the model and its loss.
        autocast: the context of the forward pass.
        folder: where libraries are kept.
    """

    def __init__(self, module: Applied, autocast: AbstractContextManager, folder: Path) -> None:
        self.module, self.autocast, self.folder = module, autocast, folder
        self._inputs = dict(module.named_parameters()) | dict(module.named_buffers())
        self._trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
        self._loaded: dict[tuple, Any] = {}

    def __call__(self, factor: Tensor, *batch: Tensor | None) -> Tensor:
        """
        Args:
            factor: of the gradients.

        Returns:
            what is reported of the loss, without the factor.
        """
        rotations = torch.view_as_real(self.module.model.freqs_cis)
        tensors = [*self._inputs.values(), rotations, factor, *(t for t in batch if t is not None)]
        shapes = tuple(None if t is None else t.shape for t in batch)
        if shapes not in self._loaded:
            self._loaded[shapes] = self._load(tensors, [t is not None for t in batch])
        with torch.no_grad():
            reported, *gradients = self._loaded[shapes].run(tensors)
            for p, gradient in zip(self._trained.values(), gradients, strict=True):
                p.grad = gradient if p.grad is None else p.grad.add_(gradient)
        return reported

    def _load(self, tensors: list[Tensor], given: list[bool]) -> Any:
        graph = traced(self._function(given), tensors)
        key = key_of(graph, tensors)
        file = find(self.folder, key)
        if file is None:
            note = f"compiling {key}"
            with exclusive(self.folder / "lock", "compiling the step", wait=None, note=note, on_wait=_log_waiting):
                file = find(self.folder, key) or build(self.folder, key, graph, tensors)
        return torch._C._aoti.AOTIModelContainerRunnerCpu(str(file), 1)

    def _function(self, given: list[bool]) -> Callable[..., list[Tensor]]:
        """The step as a function of tensors only: (inputs, rotations, factor, batch) → [reported, gradients]."""
        module, autocast, n = self.module, self.autocast, len(self._inputs)
        model: nn.Module = module.model

        def function(*tensors: Tensor) -> list[Tensor]:
            inputs = dict(zip(self._inputs, tensors[:n], strict=True))
            rest = iter(tensors[n + 2 :])
            batch = tuple(next(rest) if is_given else None for is_given in given)
            freqs_cis, model.freqs_cis = model.freqs_cis, _Complex(tensors[n])
            try:
                with autocast:
                    loss, reported = torch.func.functional_call(module, inputs, batch)
            finally:
                model.freqs_cis = freqs_cis
            trained = [inputs[name] for name in self._trained]
            gradients = torch.autograd.grad(loss * tensors[n + 1], trained)
            # Fused optimizers go through a gradient in the order of its parameter's memory.
            return [reported.detach(), *(g.contiguous() for g in gradients)]

        return function


class _Complex:
    """The table of rotations as complex numbers, of which the compiler sees only the real ones."""

    def __init__(self, real: Tensor) -> None:
        self.real = real

    def __getitem__(self, rows: slice) -> Tensor:
        return torch.view_as_complex(self.real[rows])


def traced(function: Callable[..., list[Tensor]], tensors: list[Tensor]) -> torch.fx.GraphModule:
    """The operations of a function as a graph; nothing is computed."""
    from torch.fx.experimental.proxy_tensor import make_fx

    graph = make_fx(function, tracing_mode="fake")(*tensors)
    ops = torch.ops.aten
    for node in graph.graph.find_nodes(op="call_function", target=ops.view_as_real.default):
        if node.args[0].target is ops.view_as_complex.default:
            node.replace_all_uses_with(node.args[0].args[0])
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return graph


def key_of(graph: torch.fx.GraphModule, tensors: list[Tensor]) -> str:
    """A hash of everything that the machine code of a graph depends on."""
    facts = {
        "graph": graph.code,
        "tensors": [[str(t.dtype), list(t.shape), list(t.stride())] for t in tensors],
        "torch": [torch.__version__, torch.version.git_version],
        "threads": torch.get_num_threads(),
        "processor": [platform.machine(), cpu_flags(), torch.backends.cpu.get_cpu_capability()],
        "variables": variables(),
        "options": OPTIONS,
    }
    return sha256_json(facts)[:16]


def find(folder: Path, key: str) -> Path | None:
    """The library of a key; None if there is none. A damaged one is removed."""
    for file in folder.glob(f"{key}-*.so"):
        if file.stem == f"{key}-{sha256_file(file)[:32]}":
            file.touch()  # `foundry gc` removes what was not used for some days
            return file
        get_logger().warning("%s is damaged: it is compiled again", file)
        file.unlink(missing_ok=True)
    return None


def build(folder: Path, key: str, graph: torch.fx.GraphModule, tensors: list[Tensor]) -> Path:
    """Compiles the library of a graph.

    Raises:
        DiskError: if it cannot be written.
    """
    from torch._inductor.compile_fx import compile_fx_aot
    from torch._inductor.utils import fresh_cache

    log = get_logger()
    log.info("compiling the step; the library is kept in %s", folder)
    begin = time.perf_counter()
    quote_library_folders()
    with fresh_cache(), quick_build(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of torch, about itself
        code = Path(compile_fx_aot(graph, [t.detach() for t in tensors], config_patches=OPTIONS)).read_bytes()
    file = folder / f"{key}-{hashlib.sha256(code).hexdigest()[:32]}.so"
    with atomic_write(file) as f:
        f.write(code)
    log.info("compiled in %.1f s", time.perf_counter() - begin)
    return file


@contextmanager
def quick_build() -> Iterator[None]:
    """Saves what torch 2.13 spends on building one library beside the work itself; the library is the same.

    - Its wrapper is compiled beside its kernels, not before them.
    - No library is compiled to find out what `compiler_problem` has proved: six of them took 2.6 s. It proves nothing
      about float16, for which nothing is compiled here.
    - The garbage collector would search a heap that grows and has next to no garbage.
    """
    from torch._inductor import cpp_builder
    from torch._inductor.cpu_vec_isa import VecISA

    run = cpp_builder.run_compile_cmd
    wrapper: list[Future[None]] = []

    def run_beside(command: str, cwd: str) -> None:
        if command.endswith(".wrapper.o"):
            # `cwd` is removed when this call returns.
            wrapper.append(thread.submit(run, command, cwd=os.path.dirname(cwd)))
            return
        run(command, cwd=cwd)
        while wrapper:
            wrapper.pop().result()

    def is_proved(isa: VecISA, _: str) -> bool:
        return "-mamx-fp16" not in isa.build_arch_flags()

    with ThreadPoolExecutor(1) as thread, ExitStack() as stack:
        for owner, name, quick in ((cpp_builder, "run_compile_cmd", run_beside), (VecISA, "check_build", is_proved)):
            stack.callback(setattr, owner, name, getattr(owner, name))
            setattr(owner, name, quick)
        if gc.isenabled():
            stack.callback(gc.enable)
            gc.disable()
        yield


def _log_waiting(error: Exception) -> None:
    get_logger().info("%s", error)
