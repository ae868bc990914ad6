"""Facts about a device, and compiling where torch itself is in a folder with an odd name."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundry.utils.device import compile_problem, get_device, peak_flops

ROOT = Path(__file__).resolve().parents[2]


def test_cuda_is_asked_for_products_that_do_not_differ_before_the_first_one(monkeypatch):
    """By whatever chooses it; what the user set stays."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = []
    for name, before in (("cpu", None), ("auto", None), ("cuda:1", None), ("cuda", ":16:8")):
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", before or "")
        if before is None:
            monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
        get_device(name)
        found.append(os.environ.get("CUBLAS_WORKSPACE_CONFIG"))
    assert found == [None, ":4096:8", ":4096:8", ":16:8"]


@pytest.mark.parametrize(
    ("name", "half", "single"),
    [
        ("NVIDIA H100 PCIe", 756e12, 51e12),
        ("NVIDIA H100 80GB HBM3", 989e12, 67e12),
        ("NVIDIA A100-SXM4-80GB", 312e12, 19.5e12),
        ("Tesla T4", 65e12, 8.1e12),
        ("NVIDIA of tomorrow", None, None),
    ],
)
def test_the_peak_of_a_gpu_is_that_of_its_data_sheet_in_the_precision_of_the_run(monkeypatch, name, half, single):
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: name)
    cuda = torch.device("cuda")
    assert peak_flops(cuda, torch.bfloat16) == peak_flops(cuda, torch.float16) == half
    assert peak_flops(cuda, torch.float32) == single


def test_the_peak_of_a_cpu_is_measured_and_that_of_another_device_unknown():
    assert peak_flops(torch.device("mps"), torch.float32) is None
    assert 1e8 < peak_flops(torch.device("cpu"), torch.float32) < 1e15


CHILD = """
import torch
from benchmarks import throughput
throughput.precision = lambda: torch.bfloat16
loss = throughput._as_an_expert_runs_it(lambda x, y: (x * y).sum())
print([torch.__file__, loss(torch.ones(4), torch.full((4,), 3.0)).item(), hasattr(loss, "_torchdynamo_orig_callable")])
"""


@pytest.mark.slow
def test_torch_compiles_where_its_own_folder_has_spaces_quotes_and_other_letters(tmp_path):
    """Both the project's check and the benchmark's sides; without any compiler, neither may crash."""
    folder = tmp_path / "Größe 模型's"
    folder.mkdir()
    (folder / "torch").symlink_to(Path(torch.__file__).parent)
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(map(str, (folder, ROOT))),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run([sys.executable, "-c", CHILD], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    compiled = "not compiled" not in done.stderr
    assert done.stdout.strip() == str([str(folder / "torch/__init__.py"), 12.0, compiled])
    assert compiled or compile_problem(torch.device("cpu")) in done.stderr
