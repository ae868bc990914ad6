"""Checkpoints: written in the background, kept as promised, never lost to a full disk."""

import shutil
import subprocess
import threading
import time

import pytest
import torch

from foundry.config import CheckpointError, FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.training import Trainer
from foundry.training import checkpoints as module
from foundry.training.checkpoints import Checkpoints

MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=12, tokens_per_step=256, warmup_steps=1, log_interval=1, eval_interval=3, eval_tokens=600)


def tensors(i):
    return {"x": torch.full((10,), float(i))}


def test_the_newest_and_the_pinned_stay(tmp_path):
    kept = Checkpoints(tmp_path, keep=2, pinned=frozenset({4}))
    for step in range(1, 10):
        kept.save(step, tensors(step), {"n": step})
    kept.wait()
    assert kept.steps() == [4, 8, 9]
    assert torch.equal(kept.load_newest()[0]["x"], tensors(9)["x"])
    assert kept.load_newest(before=7)[1] == {"n": 4}
    kept.remove_after(4)
    assert kept.steps() == [4]


def test_nothing_is_removed_before_the_newest_was_read_back(tmp_path, monkeypatch):
    kept = Checkpoints(tmp_path, keep=1)
    kept.save(1, tensors(1), {})
    kept.wait()

    def rotten(path, *args):
        saved(path, *args)
        (path / "state.json").write_text("rot")

    saved = module.save_checkpoint
    monkeypatch.setattr(module, "save_checkpoint", rotten)
    kept.save(2, tensors(2), {})
    with pytest.raises(CheckpointError, match="was changed after it was written"):
        kept.wait()
    assert kept.steps() == [1, 2]
    assert torch.equal(kept.load_newest()[0]["x"], tensors(1)["x"])


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    """The copy is the caller's; what is written is the state of then, not of now."""
    go, saved = threading.Event(), module.save_checkpoint
    monkeypatch.setattr(module, "save_checkpoint", lambda *a: (go.wait(10), saved(*a))[1])
    kept = Checkpoints(tmp_path, keep=2)
    begin = time.monotonic()
    kept.save(1, tensors(1), {})
    assert time.monotonic() - begin < 5 and kept.steps() == []
    go.set()
    kept.wait()
    assert kept.steps() == [1]


def test_the_state_is_copied_so_that_later_steps_do_not_reach_into_it(shards, tmp_path):
    trainer = Trainer.from_shards(
        MODEL, TRAIN, shards, runtime=Runtime(device="cpu", precision="float32", threads=1), state=tmp_path
    )
    state = trainer._start()
    copied, values = state.state_dict()
    before = {k: v.clone() for k, v in copied.items()}
    for _ in range(2):
        trainer._step(state)
        state.step += 1
        state.curve.append({"step": state.step})
    assert all(torch.equal(before[k], v) for k, v in copied.items()) and values["curve"] == []
    assert not torch.equal(state.model.norm.weight, copied["model/norm.weight"])


def test_a_full_disk_is_told_and_the_checkpoint_before_is_whole(shards, tmp_path, monkeypatch):
    """An injected ENOSPC in the second checkpoint; then room is made and the run ends as if nothing had been."""
    runtime = Runtime(device="cpu", precision="float32", threads=1, checkpoint_interval=4)

    def run(folder):
        return Trainer.from_shards(MODEL, TRAIN, shards, runtime=runtime, state=tmp_path / folder)

    whole = run("whole").fit()
    from foundry.utils import checkpoint

    hashed, calls = checkpoint.sha256_file, []

    def full(path):
        calls.append(path)
        if "00000008" in str(path):
            raise OSError(28, "No space left on device")
        return hashed(path)

    with monkeypatch.context() as m:
        m.setattr(checkpoint, "sha256_file", full)
        with pytest.raises(FoundryError, match=r"cannot write in .*No space left.*MiB are free"):
            run("cut").fit()
    assert calls
    trainer = run("cut")
    assert trainer.checkpoints.steps() == [4, 5] and not list(trainer.folder.glob("checkpoints/.*"))
    result = trainer.fit()
    assert result.curve == whole.curve
    assert all(torch.equal(a, b) for a, b in zip(result.model.parameters(), whole.model.parameters(), strict=True))


def test_a_disk_that_really_is_full(shards, tmp_path):
    """On a tmpfs of 300 KiB, where this user may mount one; a checkpoint of this run takes about 340 KiB."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("this user may not mount a tmpfs; the test above injects the error")
    try:
        runtime = Runtime(device="cpu", precision="float32", threads=1, keep_checkpoints=1)
        with pytest.raises(FoundryError, match=r"checkpoints need .* are free|cannot write in"):
            Trainer.from_shards(MODEL, TRAIN, shards, runtime=runtime, state=small).fit()
        assert not list(small.rglob("checkpoint.json")) and not list(small.rglob("*.tmp"))
    finally:
        subprocess.run(["umount", small], check=True)
        shutil.rmtree(small)
