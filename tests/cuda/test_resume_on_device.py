"""Bit for bit on a GPU: two runs, a run that was killed, and one that was compiled in another folder."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "tests/training/runner.py"
pytestmark = pytest.mark.cuda
SHAPE = [
    "dim=64",
    "n_heads=4",
    "n_kv_heads=2",
    "ffn_dim=96",
    "max_seq_len=160",
    "tokens_per_step=1280",
    "steps=60",
    "device=cuda",
]
CASES = {
    "bfloat16 with dropout": "precision=bfloat16 compile=never",
    "float16, accumulating": "precision=float16 micro_batch_tokens=320 compile=never",
    "compiled, documents with masks": "precision=bfloat16 compile=always packing=best_fit document_mask=true dropout=0",
}


def start(shards, folder, name, *pairs, processes=0, **variables):
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes else []
    command = [sys.executable, *torchrun, str(RUNNER), str(shards), str(folder / f"{name}-state"), str(folder / name)]
    env = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    env |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": str(ROOT), **variables}
    return subprocess.Popen(
        [*command, *SHAPE, *pairs], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env, cwd=ROOT
    )


def finish(shards, folder, name, *pairs, **options):
    p = start(shards, folder, name, *pairs, **options)
    text, _ = p.communicate(timeout=400)
    assert p.returncode == 0, text
    return text


def result(folder, name):
    return (folder / name / "model.safetensors").read_bytes(), (folder / f"{name}.curve.json").read_text()


def killed_at(shards, folder, name, step, *pairs):
    p = start(shards, folder, name, *pairs)
    seen = []
    for line in p.stdout:
        seen.append(line)
        if line == f"step {step}\n":
            p.kill()
            p.communicate()
            return
    raise AssertionError(f"ended before step {step}: {''.join(seen)}")


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_killed_ends_with_the_bits_of_one_that_is_not(gpu, shards, tmp_path, case):
    """So does a twin that nothing disturbs, whose compiler has a cache of its own: it must not choose by the clock."""
    options = CASES[case].split()
    text = finish(shards, tmp_path, "whole", *options)
    assert "1 x cuda" in text and (", compiled" in text) == ("compiled" in case)
    finish(shards, tmp_path, "twin", *options, **own_cache(tmp_path))
    assert result(tmp_path, "twin") == result(tmp_path, "whole")
    for step in (3, 45):
        killed_at(shards, tmp_path, "killed", step, *options)
    text = finish(shards, tmp_path, "killed", *options)
    assert re.search(r"resumes from the checkpoint of step (36|40|44|48|52|56)\n", text), text
    assert result(tmp_path, "killed") == result(tmp_path, "whole")


def own_cache(folder):
    return {key: str(folder / key) for key in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}


def test_products_are_set_to_be_deterministic_before_the_first_one(gpu):
    """cuBLAS reads its variable once, with its first product; a training then refuses what it cannot repeat."""
    code = (
        "import torch\nfrom foundry.config import Runtime\nfrom foundry.training.numerics import numerics\n"
        "from foundry.utils.device import get_device\nfrom foundry.utils.distributed import World\n"
        "device = get_device('cuda')\na = torch.randn(64, 64, device=device)\na @ a\n"
        "with numerics(Runtime(device='cuda'), World(0, 1, device)):\n    print((a @ a).sum().item())\n"
    )
    env = {k: v for k, v in os.environ.items() if k != "CUBLAS_WORKSPACE_CONFIG"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


GROUP = ("precision=bfloat16", "compile=never", "dropout=0")


@pytest.fixture(scope="module")
def one(shards, tmp_path_factory):
    """The losses of one process."""
    folder = tmp_path_factory.mktemp("one")
    finish(shards, folder, "one", *GROUP)
    return losses(folder, "one")


def losses(folder, name):
    return [row["loss"] for row in json.loads((folder / f"{name}.curve.json").read_text())[0]]


@pytest.mark.parametrize("mode", ["ddp", "fsdp"])
def test_as_many_processes_as_there_are_gpus_follow_the_curve_of_one(gpu, one, shards, tmp_path, mode):
    """By torchrun, with NCCL for tensors on GPUs and gloo for the others; one process forms a group, too.

    Then all of them are stopped in the middle, and one process resumes from their checkpoint.
    """
    n = max(k for k in (1, 2, 4, 8) if k <= torch.cuda.device_count())  # they divide the batch's eight rows
    options = (*GROUP, f"parallel={mode}")
    assert f"{n} x cuda" in finish(shards, tmp_path, "all", *options, processes=n)
    assert losses(tmp_path, "all") == pytest.approx(one, abs=0.02 if n > 1 else 0)
    p = start(shards, tmp_path, "less", *options, processes=n)
    for line in p.stdout:
        if line == "step 21\n":
            break
    p.terminate()
    p.communicate(timeout=100)
    assert "resumes from the checkpoint of step" in finish(shards, tmp_path, "less", *options)
    assert losses(tmp_path, "less") == pytest.approx(one, abs=0.02)
