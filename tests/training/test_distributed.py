"""Several processes on the CPU (gloo): they train, resume and stop as one process does; tests/cuda has NCCL."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml

from foundry.config import read_yaml
from foundry.models import load_model
from foundry.utils.checkpoint import load_checkpoint

ROOT = Path(__file__).resolve().parents[2]
RUNNER = Path(__file__).with_name("runner.py")
pytestmark = [pytest.mark.distributed, pytest.mark.slow]


def start(nproc, shards, folder, *pairs):
    """A run of so many processes; 1: without torchrun."""
    folder.mkdir(exist_ok=True)
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={nproc}"] if nproc > 1 else []
    command = [
        sys.executable,
        *torchrun,
        str(RUNNER),
        str(shards),
        str(folder / "state"),
        str(folder / "model"),
        *pairs,
    ]
    env = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)


def finish(nproc, shards, folder, *pairs):
    p = start(nproc, shards, folder, *pairs)
    text, _ = p.communicate(timeout=300)
    assert p.returncode == 0, text
    return text, json.loads((folder / "model.curve.json").read_text())


def until(p, line):
    seen = []
    for got in p.stdout:
        seen.append(got)
        if got.startswith(line):
            return
    raise AssertionError(f"ended before it printed {line!r}: {''.join(seen)}")


SAME = ("dropout=0", "tokens_per_step=384", "steps=12", "packing=best_fit", "eval_interval=6")


@pytest.fixture(scope="module")
def one(shards, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    return finish(1, shards, folder, *SAME)[1], folder


@pytest.mark.parametrize(
    ("nproc", "options"),
    [(2, ["micro_batch_tokens=64"]), (3, []), (2, ["parallel=fsdp"])],
    ids=["2 ddp, accumulating", "3 ddp", "2 fsdp"],
)
def test_several_processes_follow_the_curve_of_one(shards, one, tmp_path, nproc, options):
    """Padding makes the numbers of valid tokens unequal between the ranks; Muon's matrices are divided under FSDP."""
    text, curve = finish(nproc, shards, tmp_path, *SAME, *options)
    assert len(curve[0]) == 12
    assert text.count("has the trained model") == (1 if "parallel=fsdp" in options else nproc)
    for a, b in zip(one[0][0], curve[0], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4) and a["lr"] == b["lr"]
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)
    assert one[0][1][-1]["val_bits_per_byte"] == pytest.approx(curve[1][-1]["val_bits_per_byte"], rel=1e-3)
    a, b = (load_model(f / "model") for f in (one[1], tmp_path))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-3, rtol=1e-2)


@pytest.mark.parametrize("options", [["precision=float16"], ["parallel=fsdp"]], ids=["ddp, float16", "fsdp"])
def test_two_processes_stop_together_and_resume_exactly(shards, tmp_path, options):
    """With dropout: the random numbers of each rank go on where they were."""
    options = ["steps=16", "tokens_per_step=384", *options]
    whole = finish(2, shards, tmp_path / "whole", *options)[1]
    p = start(2, shards, tmp_path / "cut", *options)
    until(p, "step 6")
    p.send_signal(signal.SIGTERM)
    text, _ = p.communicate(timeout=60)
    assert (
        p.returncode != 0 and "stopped by a signal at step" in text and "Traceback (most" not in text.split("torch")[0]
    )
    p = start(2, shards, tmp_path / "cut", *options)
    until(p, "step 12")
    for child in psutil.Process(p.pid).children(recursive=True):
        child.kill()
    p.communicate(timeout=60)
    text, curve = finish(2, shards, tmp_path / "cut", *options)
    assert re.search(
        r"resumes from the checkpoint of step (8|12)\b", text
    )  # 12 may not have been whole when the kill came
    assert curve == whole
    files = [(tmp_path / n / "model/model.safetensors").read_bytes() for n in ("whole", "cut")]
    assert files[0] == files[1]


def test_an_overflow_of_float16_on_one_of_two_processes_stops_the_step_on_both(shards, tmp_path):
    options = (
        "precision=float16",
        "overflow=3",
        "steps=6",
        "checkpoint_interval=1",
        "keep_checkpoints=6",
        "eval_interval=6",
    )
    text, (curve, _) = finish(2, shards, tmp_path, *options)
    assert text.count("step 4: the gradient overflowed float16") == 1
    assert [math.isinf(row["grad_norm"]) for row in curve] == [False, False, False, True, False, False]
    (checkpoints,) = tmp_path.glob("state/*/checkpoints")
    tensors, scales = {}, {}
    for step in (3, 4, 5):
        tensors[step], values = load_checkpoint(checkpoints / f"step-{step:08d}")
        scales[step] = values["scaler"]["scale"]
    assert scales == {3: 65536.0, 4: 32768.0, 5: 32768.0}
    learnt = [k for k in tensors[3] if not k.startswith("rng/")]
    assert any("momentum" in k for k in learnt) and any("exp_avg" in k for k in learnt)
    assert all(torch.equal(tensors[3][k], tensors[4][k]) for k in learnt)
    assert not any(torch.equal(tensors[4][k], tensors[5][k]) for k in learnt if k.endswith(("momentum", "exp_avg")))


@pytest.mark.parametrize(
    ("options", "then"),
    [([], 1), (["parallel=fsdp"], 1), (["parallel=fsdp"], 3)],
    ids=["ddp to one", "fsdp to one", "fsdp to three"],
)
def test_another_number_of_processes_goes_on_with_the_same_batches(shards, one, tmp_path, options, then):
    p = start(2, shards, tmp_path, *SAME, *options)
    until(p, "step 5")
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)
    newest = max(tmp_path.glob("state/*/checkpoints/step-*"))
    parts = {
        name: entry["parts"] for name, entry in json.loads((newest / "checkpoint.json").read_text())["tensors"].items()
    }
    divided = {name for name, found in parts.items() if len(found) == 2}
    if options:  # each process wrote its half of every weight and moment, and of nothing else
        assert len({part["file"][:10] for name in divided for part in parts[name]}) == 2
        assert {k for k in parts if k.startswith(("model/", "optimizer/")) and not k.endswith("/step")} == divided
    else:
        assert not divided
    text, curve = finish(then, shards, tmp_path, *SAME, *options)
    assert "resumes from the checkpoint" in text and f"processes 2 → {then}" in text
    for a, b in zip(one[0][0], curve[0], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-4)


def test_a_disk_that_is_full_for_one_process_ends_all_with_the_reason(shards, tmp_path):
    """One process cannot write its part: no checkpoint appears, none is left half-written, and no process waits."""
    p = start(2, shards, tmp_path, *SAME, "parallel=fsdp", "full_disk=1")
    text, _ = p.communicate(timeout=200)
    assert p.returncode != 0
    assert "cannot write in /dev: No space left on device" in text
    assert "training process 1 could not write its part of a checkpoint: DiskError" in text
    (folder,) = tmp_path.glob("state/*/checkpoints")
    assert not list(folder.iterdir())
    assert "resumes" not in finish(2, shards, tmp_path, *SAME, "parallel=fsdp")[0]


def test_a_rank_that_dies_ends_the_run_with_its_error_told(shards, tmp_path):
    p = start(2, shards, tmp_path, "steps=100000")
    until(p, "step 2")
    workers = [c for c in psutil.Process(p.pid).children(recursive=True) if "runner.py" in " ".join(c.cmdline())]
    workers[1].kill()
    text, _ = p.communicate(timeout=90)
    assert p.returncode != 0
    assert "Signal 9 (SIGKILL)" in text


@pytest.fixture
def project(shards, tokenizer, tmp_path):
    """A folder in which the train stage can run, on two processes."""
    params = read_yaml(ROOT / "params.yaml")
    params["tokenizer"]["vocab_size"] = 400
    params["model"].update(dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
    params["train"].update(steps=400, tokens_per_step=256, warmup_steps=2, eval_interval=200, eval_tokens=600)
    params["runtime"].update(nproc=2, tracking=False, threads=1, device="cpu")
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params))
    (tmp_path / "data").mkdir()
    (tmp_path / "data/shards").symlink_to(shards)
    return tmp_path


def stage(project):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "FOUNDRY_PROGRESS": "0"}
    env.pop("DVC_ROOT", None)
    return subprocess.Popen(
        [sys.executable, "-m", "stages.train"],
        cwd=project,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def begun(p):
    """Until both processes train: the lock names rank 0, and it has printed its run."""
    until(p, "[train] run ")
    time.sleep(1.0)


@pytest.mark.parametrize("how", ["SIGTERM to the launcher", "Ctrl-C in a terminal"])
def test_the_stage_on_two_processes_stops_with_128_plus_the_signal_and_goes_on(project, how):
    p = stage(project)
    begun(p)
    if how.startswith("SIGTERM"):
        p.send_signal(signal.SIGTERM)
    else:
        os.killpg(p.pid, signal.SIGINT)  # a terminal sends it to every process of the group
    text, _ = p.communicate(timeout=60)
    assert p.returncode == (143 if how.startswith("SIGTERM") else 130), text
    assert "stopped by a signal at step" in text and "Traceback" not in text
    p = stage(project)
    text, _ = p.communicate(timeout=200)
    assert p.returncode == 0 and "resumes from the checkpoint of step" in text, text
    assert text.count("wrote artifacts/model") == text.count("[train] done in") == 1
    assert (project / "artifacts/model/model.safetensors").exists()


def test_a_killed_process_of_the_stage_is_told_in_one_line(project):
    p = stage(project)
    begun(p)
    workers = psutil.Process(p.pid).children(recursive=True)
    next(w for w in workers if "stages.train" in " ".join(w.cmdline())).kill()
    text, _ = p.communicate(timeout=90)
    assert (
        p.returncode == 1 and "was killed by signal 9; the others were stopped" in text and "Traceback" not in text
    ), text
