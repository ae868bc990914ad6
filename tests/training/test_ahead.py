"""The compiled step: the gradients of autograd, from a library that is made once and found by every later process."""

import gc
import hashlib
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from threading import Event

import pytest
import torch

from foundry.config import ModelConfig, Runtime
from foundry.models import MiniLLM
from foundry.training import ahead
from foundry.training.ahead import Library, build, compiles_ahead, find, key_of, traced
from foundry.training.parallel import Applied
from foundry.training.pretraining import NextToken
from foundry.training.step import Backward
from foundry.utils.device import compiler_problem
from foundry.utils.distributed import World
from foundry.utils.locks import exclusive

SHAPE = {"vocab_size": 97, "dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 48, "max_seq_len": 16}
needs_compiler = pytest.mark.skipif(compiler_problem() is not None, reason="no compiler")
TENSORS = [torch.arange(6.0), torch.ones(6)]


def module(**options):
    torch.manual_seed(1)
    return Applied(MiniLLM(ModelConfig(**{**SHAPE, "zero_init": False, **options})).train(), NextToken(20, 1e-3))


def batch(rows=3, length=16, documents=True):
    tokens, targets = torch.randint(0, 97, (2, rows, length), generator=torch.Generator().manual_seed(2))
    targets[0, 3:9] = -100
    return tokens, targets, torch.arange(length).expand(rows, length) // 5 if documents else None


def gradients(backward, model, batches):
    model.zero_grad()
    reported = [backward(torch.tensor(0.25), *b) for b in batches]
    return reported, {name: p.grad for name, p in model.named_parameters()}


def simple(a, b):
    return [a * b + 1]


def nothing_is_compiled(*_):
    raise AssertionError("it was compiled")


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "documents", "shapes"),
    [
        ({}, False, [(3, 16)]),
        (
            {"qk_norm": True, "logit_softcap": 20.0, "tie_embeddings": False, "sliding_window": 7},
            True,
            [(3, 16), (2, 9)],
        ),
    ],
)
def test_the_gradients_are_those_of_autograd_and_are_summed_over_micro_batches(tmp_path, options, documents, shapes):
    """There is one library for each shape of a micro-batch."""
    here = module(**options)
    batches = [batch(*shape, documents) for shape in shapes]
    library = Library(here, nullcontext(), tmp_path / "a folder 模型")
    got, compiled = gradients(library, here, [*batches, batches[0]])
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    expected, eager = gradients(Backward(here, scaler), here, [*batches, batches[0]])
    assert len(list((tmp_path / "a folder 模型").glob("*.so"))) == len(shapes)
    assert all(g.abs().max() > 1e-4 for g in eager.values())
    assert all(p.grad.stride() == p.stride() for p in here.parameters())
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=0)
    for name, gradient in eager.items():
        assert (compiled[name] - gradient).norm() < 1e-4 * gradient.norm(), name


@needs_compiler
@pytest.mark.slow
def test_dropout_draws_from_the_seed_of_the_step(tmp_path):
    here = module(dropout=0.5, n_layers=1)
    library = Library(here, nullcontext(), tmp_path)
    losses = []
    for seed in (1, 2, 1):
        torch.manual_seed(seed)
        losses.append(gradients(library, here, [batch()])[0][0].item())
    assert losses[0] == losses[2] != losses[1]


OTHER_PROCESS = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
import test_ahead as t
from foundry.training import ahead
compiled = []
build = ahead.build
ahead.build = lambda *a: (compiled.append(1), build(*a))[1]
here = t.module(n_layers=1)
reported, grads = t.gradients(ahead.Library(here, t.nullcontext(), Path(sys.argv[2])), here, [t.batch()])
bits = [reported[0].item(), *(g.double().sum().item().hex() for g in grads.values())]
print(json.dumps([len(compiled), "torch._inductor.compile_fx" in sys.modules, bits]))
"""


@needs_compiler
@pytest.mark.slow
def test_a_later_process_compiles_nothing_and_computes_the_same_bits_also_from_a_copied_folder(tmp_path):
    def start(folder):
        command = [sys.executable, "-c", OTHER_PROCESS, str(Path(__file__).parent), str(folder)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def end(child):
        out, _ = child.communicate()
        assert child.returncode == 0
        return json.loads(out)

    first = [end(child) for child in [start(tmp_path / "a"), start(tmp_path / "a")]]  # at the same time
    assert sorted(run[0] for run in first) == [0, 1] and first[0][2] == first[1][2]
    shutil.move(tmp_path / "a", tmp_path / "b b")
    assert end(start(tmp_path / "b b")) == [0, False, first[0][2]]
    (library,) = (tmp_path / "b b").glob("*.so")
    os.truncate(library, library.stat().st_size // 2)
    damaged = end(start(tmp_path / "b b"))
    assert damaged[0] == 1 and damaged[2] == first[0][2]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(folder, key, library, commands of the compiler, whether the kernels were begun before the wrapper was done)."""
    from torch._inductor import cpp_builder

    folder = tmp_path_factory.mktemp("built")
    run, started, commands = cpp_builder._run_compile_cmd, Event(), []

    def watched(command, cwd):
        commands.append(command)
        if ".kernel.o" in command:
            started.set()
        elif command.endswith(".wrapper.o"):
            assert started.wait(60), "the compiler of the kernels waits for that of the wrapper"
        run(command, cwd)

    graph = traced(simple, TENSORS)
    key = key_of(graph, TENSORS)
    assert find(folder, key) is None and gc.isenabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpp_builder, "_run_compile_cmd", watched)
        file = build(folder, key, graph, TENSORS)
    assert gc.isenabled()
    return folder, key, file, commands, started.is_set()


@needs_compiler
@pytest.mark.slow
def test_a_library_is_kept_under_its_own_hash_and_found(built):
    folder, key, file, *_ = built
    os.utime(file, (1, 1))
    assert find(folder, key) == file and file.stat().st_mtime > 1
    assert [p.name for p in folder.iterdir()] == [file.name]
    (out,) = torch._C._aoti.AOTIModelContainerRunnerCpu(str(file), 1).run(TENSORS)
    assert out.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


@needs_compiler
@pytest.mark.slow
def test_a_build_compiles_the_wrapper_beside_the_kernels_and_nothing_else_but_the_constants(
    built, tmp_path, monkeypatch
):
    from torch._inductor import cpp_builder

    *_, commands, beside = built
    assert beside
    assert [" -c " in c for c in commands] == [True, True, True, False] and commands[0].endswith(".wrapper.o")
    run, graph = cpp_builder._run_compile_cmd, traced(simple, TENSORS)

    def failing(command, cwd):
        if command.endswith(".wrapper.o"):
            raise RuntimeError("the wrapper has an error")
        run(command, cwd)

    monkeypatch.setattr(cpp_builder, "_run_compile_cmd", failing)
    with pytest.raises(Exception, match="the wrapper has an error"):
        build(tmp_path, "key", graph, TENSORS)
    assert cpp_builder.run_compile_cmd.__name__ == "run_compile_cmd" and gc.isenabled()


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"", lambda b: b[:9] + b"?" + b[10:]])
def test_a_damaged_library_is_removed_and_not_used(tmp_path, damage):
    code = b"a shared library"
    file = tmp_path / f"key-{hashlib.sha256(code).hexdigest()[:32]}.so"
    file.write_bytes(code)
    assert find(tmp_path, "key") == file and find(tmp_path, "ke") is None
    file.write_bytes(damage(code))
    assert find(tmp_path, "key") is None and not file.exists()


def test_a_library_is_for_one_graph_shape_processor_number_of_threads_and_version(monkeypatch):
    def key(function=simple, tensors=TENSORS):
        return key_of(traced(function, tensors), tensors)

    keys = [
        key(),
        key(lambda a, b: [a * b + 2]),
        key(tensors=[t.bfloat16() for t in TENSORS]),
        key(tensors=[t[:5] for t in TENSORS]),
    ]
    for patch in (
        lambda m: m.setattr(torch, "__version__", "2.99"),
        lambda m: m.setattr(ahead, "cpu_flags", lambda: "fpu"),
        lambda m: m.setattr(torch, "get_num_threads", lambda: 77),
        lambda m: m.setitem(ahead.OPTIONS, "deterministic", False),
        lambda m: m.setenv("ONEDNN_MAX_CPU_ISA", "AVX2"),
    ):
        with monkeypatch.context() as m:
            patch(m)
            keys.append(key())
    assert len(set(keys)) == len(keys) and key() == keys[0]


def test_nothing_complex_is_left_in_the_graph():
    here, tensors = module(), []
    library = Library(here, nullcontext(), Path("unused"))
    library._load = lambda given, mask: (tensors.extend(given), nothing_is_compiled())
    with pytest.raises(AssertionError, match="was compiled"):
        library(torch.tensor(1.0), *batch(documents=False))
    graph = traced(library._function([True, True, False]), tensors)
    assert len(graph.graph.nodes) > 100 and "complex" not in graph.code and "view_as_real" not in graph.code
    assert here.model.freqs_cis.is_complex()


def test_who_waited_for_another_compilation_uses_its_library(tmp_path, monkeypatch):
    waits, file = [], tmp_path / "made elsewhere"
    with ExitStack() as other:
        other.enter_context(exclusive(tmp_path / "lock"))
        monkeypatch.setattr(ahead, "_log_waiting", lambda error: (waits.append(error), other.close()))
        monkeypatch.setattr(ahead, "find", lambda folder, key: file if waits else None)
        monkeypatch.setattr(ahead, "build", nothing_is_compiled)
        monkeypatch.setattr(torch._C._aoti, "AOTIModelContainerRunnerCpu", lambda path, n: path)
        library = Library(module(), nullcontext(), tmp_path)
        monkeypatch.setattr(library, "_function", lambda given: simple)
        assert library._load(TENSORS, []) == str(file) and len(waits) == 1


def test_which_runs_have_their_step_from_a_library():
    class Other(NextToken):
        pass

    loss, cpu, half = NextToken(8, 0.0), torch.device("cpu"), torch.bfloat16
    assert compiles_ahead(World(0, 1, cpu), Runtime(), half, loss)
    assert not compiles_ahead(World(0, 2, cpu), Runtime(), half, loss)
    assert not compiles_ahead(World(0, 1, torch.device("cuda")), Runtime(), half, loss)
    assert not compiles_ahead(World(0, 1, cpu), Runtime(recompute=True), half, loss)
    assert not compiles_ahead(World(0, 1, cpu), Runtime(), torch.float16, loss)
    assert not compiles_ahead(World(0, 1, cpu), Runtime(), half, Other(8, 0.0))
