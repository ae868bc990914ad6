"""A run that was killed and started again ends with the same bits as one that was not. Real processes, really killed."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUNNER = Path(__file__).with_name("runner.py")


def start(shards, state, out, *pairs):
    command = [sys.executable, str(RUNNER), str(shards), str(state), str(out), *pairs]
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )


def finish(shards, state, out, *pairs):
    p = start(shards, state, out, *pairs)
    text, _ = p.communicate(timeout=300)
    assert p.returncode == 0, text
    return text


def until(process, line):
    for got in process.stdout:
        if got.startswith(line):
            return
    raise AssertionError(f"the process ended before it printed {line!r}")


def results(out):
    return (Path(out) / "model.safetensors").read_bytes(), Path(f"{out}.curve.json").read_text()


@pytest.fixture(scope="module")
def whole(shards, tmp_path_factory):
    """The uninterrupted run."""
    tmp = tmp_path_factory.mktemp("whole")
    finish(shards, tmp / "state", tmp / "model")
    return results(tmp / "model"), tmp


def test_two_uninterrupted_runs_are_equal_bit_for_bit(shards, whole, tmp_path):
    finish(shards, tmp_path / "state", tmp_path / "model")
    assert results(tmp_path / "model") == whole[0]


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(shards, whole, tmp_path):
    """SIGKILL wherever it falls, in the middle of a save included, until the run has gone through by itself."""
    rng = random.Random(1)
    kills = 0
    for _ in range(40):
        p = start(shards, tmp_path / "state", tmp_path / "model")
        if kills >= 6:
            text, _ = p.communicate(timeout=300)
            assert p.returncode == 0, text
            break
        until(p, "step ")  # past its imports: the state is being changed
        time.sleep(rng.uniform(0.0, 0.12))
        if p.poll() is None:
            p.kill()
            kills += 1
        p.communicate()
        if p.returncode == 0:
            break
    assert kills >= 4
    assert results(tmp_path / "model") == whole[0]


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_exits_with_128_plus_its_number(shards, whole, tmp_path, sig):
    p = start(shards, tmp_path / "state", tmp_path / "model")
    until(p, "step 6")
    p.send_signal(sig)
    text, _ = p.communicate(timeout=60)
    assert p.returncode == 128 + sig, text
    assert "stopped by a signal at step" in text and not (tmp_path / "model").exists()
    text = finish(shards, tmp_path / "state", tmp_path / "model")
    assert "goes on from the checkpoint of step" in text
    assert results(tmp_path / "model") == whole[0]


def test_a_finished_run_started_again_gives_the_same_bits_at_once(shards, whole, tmp_path):
    text = finish(shards, whole[1] / "state", tmp_path / "model")
    assert "goes on from the checkpoint of step 30" in text
    assert results(tmp_path / "model") == whole[0]


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(shards, whole, tmp_path):
    shutil.copytree(whole[1] / "state", tmp_path / "state")
    newest = sorted(tmp_path.glob("state/*/checkpoints/step-*"))[-1]
    data = bytearray((newest / "tensors.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (newest / "tensors.safetensors").write_bytes(data)
    text = finish(shards, tmp_path / "state", tmp_path / "model")
    assert "passed over" in text and "goes on from the checkpoint of step 28" in text
    assert results(tmp_path / "model") == whole[0]


def test_only_damaged_checkpoints_are_an_error_not_a_silent_new_start(shards, whole, tmp_path):
    shutil.copytree(whole[1] / "state", tmp_path / "state")
    for state in tmp_path.glob("state/*/checkpoints/step-*/state.json"):
        state.write_text("{}")
    p = start(shards, tmp_path / "state", tmp_path / "model")
    text, _ = p.communicate(timeout=60)
    assert p.returncode == 1 and "every checkpoint is damaged" in text and "Traceback" not in text


def test_a_second_trainer_on_the_same_run_is_refused(shards, tmp_path):
    first = start(shards, tmp_path / "state", tmp_path / "model", "steps=100000")
    until(first, "step 1")
    second = start(shards, tmp_path / "state", tmp_path / "model", "steps=100000")
    text, _ = second.communicate(timeout=60)
    first.kill()
    first.communicate()
    assert second.returncode == 1 and f"is already running (pid {first.pid}" in text


def test_a_state_of_another_run_is_refused_with_the_key_that_differs(shards, whole, tmp_path):
    shutil.copytree(whole[1] / "state", tmp_path / "state")
    (folder,) = (tmp_path / "state").iterdir()
    identity = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps({**identity, "seed": 99}))
    p = start(shards, tmp_path / "state", tmp_path / "model")
    text, _ = p.communicate(timeout=60)
    assert p.returncode == 1 and "seed: 99 there, 3 now" in text


def test_other_execution_settings_go_on_with_a_warning(shards, tmp_path):
    p = start(shards, tmp_path / "state", tmp_path / "model")
    until(p, "step 6")
    p.send_signal(signal.SIGTERM)
    p.communicate(timeout=60)
    text = finish(shards, tmp_path / "state", tmp_path / "model", "threads=2")
    assert "threads 1 → 2" in text and "goes on from the checkpoint" in text
