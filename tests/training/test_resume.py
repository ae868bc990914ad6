"""A run that was killed and started again ends with the same bits as one that was not: real processes, real kills.

Most of them are forks of a process that has imported torch; what they are compared with is a process of its own.
"""

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
from forks import Forks

RUNNER = Path(__file__).with_name("runner.py")
FORKS: Forks


@pytest.fixture(scope="module", autouse=True)
def forks():
    global FORKS
    FORKS = Forks(RUNNER)
    yield
    FORKS.close()


def start(shards, state, out, *pairs):
    return FORKS.start(shards, state, out, *pairs)


def finish(shards, state, out, *pairs):
    p = start(shards, state, out, *pairs)
    text, _ = p.communicate()
    assert p.returncode == 0, text
    return text


def by_itself(shards, state, out, *pairs):
    """In an interpreter of its own, with a hash seed of its own."""
    command = [sys.executable, str(RUNNER), str(shards), str(state), str(out), *pairs]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


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
    by_itself(shards, tmp / "state", tmp / "model")
    return results(tmp / "model"), tmp


def test_two_uninterrupted_runs_are_equal_bit_for_bit(shards, whole, tmp_path):
    by_itself(shards, tmp_path / "state", tmp_path / "model")
    assert results(tmp_path / "model") == whole[0]


@pytest.mark.slow
def test_kills_at_random_moments_change_no_bit(shards, tmp_path):
    """At least ten SIGKILLs wherever they fall, some of them while a checkpoint is being written."""
    by_itself(shards, tmp_path / "whole", tmp_path / "uninterrupted", "steps=150")
    rng = random.Random(1)
    kills = in_saves = 0
    for life in range(14):
        saving = life % 3 == 0
        p = start(shards, tmp_path / "state", tmp_path / "model", "steps=150", *["slow_save=1"] * saving)
        # Past its imports, the state is being changed; some steps further, so that a busy machine, too, saves some.
        for _ in range(1 if saving else rng.randrange(1, 10)):
            until(p, "saving" if saving else "step ")
        time.sleep(rng.uniform(0.0, 0.1))
        if p.poll() is None:
            p.kill()
            kills += 1
            in_saves += saving
        p.communicate()
        if kills == 12:
            break
    assert kills >= 10 and in_saves >= 3
    text = by_itself(shards, tmp_path / "state", tmp_path / "model", "steps=150")  # and another hash seed
    assert "resumes from the checkpoint of step" in text
    assert results(tmp_path / "model") == results(tmp_path / "uninterrupted")


HARD = {
    "float16, accumulation, across an epoch": "steps=90 precision=float16 micro_batch_tokens=64 checkpoint_interval=1",
    "packed documents with masks": (
        "packing=best_fit document_mask=true steps=20 checkpoint_interval=3 optimizer=adamw"
    ),
    "every option": ("qk_norm=true z_loss=0.0001 logit_softcap=20.0 sliding_window=9 recompute=true schedule=cosine"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", HARD)
def test_a_killed_run_with_everything_that_has_state_ends_the_same(shards, tmp_path, name):
    """Killed after the first step, in the warm-up, at an epoch's end (step 76), in the decay, before the last step."""
    options = HARD[name].split()
    by_itself(shards, tmp_path / "whole", tmp_path / "uninterrupted", *options)
    steps = 90 if "steps=90" in options else 20
    for step in (1, 2, 76, steps - 1):
        if step < steps:
            p = start(shards, tmp_path / "state", tmp_path / "model", *options)
            until(p, f"step {step}\n")
            p.kill()
            p.communicate()
    finish(shards, tmp_path / "state", tmp_path / "model", *options)
    assert results(tmp_path / "model") == results(tmp_path / "uninterrupted")


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_signal_saves_and_exits_with_128_plus_its_number(shards, whole, tmp_path, sig):
    p = start(shards, tmp_path / "state", tmp_path / "model")
    until(p, "step 6")
    p.send_signal(sig)
    text, _ = p.communicate()
    assert p.returncode == 128 + sig, text
    assert "stopped by a signal at step" in text and not (tmp_path / "model").exists()
    text = finish(shards, tmp_path / "state", tmp_path / "model")
    assert "resumes from the checkpoint of step" in text
    assert results(tmp_path / "model") == whole[0]


def test_a_second_ctrl_c_stops_at_once_and_leaves_the_checkpoints_whole(shards, whole, tmp_path):
    p = start(shards, tmp_path / "state", tmp_path / "model", "slow_save=1")
    until(p, "saving")
    p.send_signal(signal.SIGINT)
    until(p, "stopping after this step")
    p.send_signal(signal.SIGINT)
    text, _ = p.communicate()
    assert p.returncode == 130 and "stopped by a signal" not in text  # not the orderly stop, which saves first
    finish(shards, tmp_path / "state", tmp_path / "model")
    assert results(tmp_path / "model") == whole[0]


def test_a_longer_run_of_the_same_recipe_goes_on_from_the_stable_part(shards, tmp_path):
    """wsd: before the decay the rate does not depend on `steps`; the checkpoints of both runs are the same there."""
    finish(shards, tmp_path / "state", tmp_path / "short", "steps=30")
    text = finish(shards, tmp_path / "state", tmp_path / "long", "steps=50")
    assert "is the same run up to step 15" in text and "resumes from the checkpoint of step 15" in text
    finish(shards, tmp_path / "other", tmp_path / "from scratch", "steps=50")
    assert results(tmp_path / "long") == results(tmp_path / "from scratch")
    assert "same run" not in finish(shards, tmp_path / "state", tmp_path / "x", "steps=40", "schedule=cosine")


def test_a_clock_that_was_set_back_between_two_lives_changes_no_bit(shards, whole, tmp_path):
    """Every file of the first life seems to come from tomorrow, the older ones from later than the newer ones."""
    p = start(shards, tmp_path / "state", tmp_path / "model")
    until(p, "step 14")
    p.kill()
    p.communicate()
    files = sorted(f for f in tmp_path.rglob("*") if f.is_file())
    assert len([f for f in files if f.name == "checkpoint.json"]) >= 2
    for i, file in enumerate(files):
        os.utime(file, (time.time() + 86_400 - i,) * 2)
    text = finish(shards, tmp_path / "state", tmp_path / "model")
    assert "resumes from the checkpoint of step 12" in text or "resumes from the checkpoint of step 8" in text, text
    assert results(tmp_path / "model") == whole[0]


def test_a_finished_run_started_again_gives_the_same_bits_at_once(shards, whole, tmp_path):
    text = finish(shards, whole[1] / "state", tmp_path / "model")
    assert "resumes from the checkpoint of step 30" in text
    assert results(tmp_path / "model") == whole[0]


def test_a_damaged_checkpoint_is_told_and_the_one_before_is_used(shards, whole, tmp_path):
    shutil.copytree(whole[1] / "state", tmp_path / "state")
    newest = sorted(tmp_path.glob("state/*/checkpoints/step-*"))[-1]
    part = newest / "part-00000-00000.safetensors"
    data = bytearray(part.read_bytes())
    data[len(data) // 2] ^= 1
    part.write_bytes(data)
    text = finish(shards, tmp_path / "state", tmp_path / "model")
    assert "step 30 is damaged and was moved to" in text and "resumes from the checkpoint of step 28" in text
    assert results(tmp_path / "model") == whole[0]


def test_without_a_good_checkpoint_training_starts_from_scratch_with_a_warning(shards, whole, tmp_path):
    shutil.copytree(whole[1] / "state", tmp_path / "state")
    for state in tmp_path.glob("state/*/checkpoints/step-*/state.json"):
        state.write_text("{}")
    text = finish(shards, tmp_path / "state", tmp_path / "model")
    assert text.count("is damaged and was moved to") >= 2 and "training starts from scratch" in text
    assert results(tmp_path / "model") == whole[0]


def test_a_second_trainer_on_the_same_run_is_refused(shards, tmp_path):
    first = start(shards, tmp_path / "state", tmp_path / "model", "steps=100000")
    until(first, "step 1")
    second = start(shards, tmp_path / "state", tmp_path / "model", "steps=100000")
    text, _ = second.communicate()
    first.kill()
    first.communicate()
    assert second.returncode == 1 and f"is already running (pid {first.pid}" in text


def test_a_state_of_another_run_is_refused_with_the_key_that_differs(shards, whole, tmp_path):
    shutil.copytree(whole[1] / "state", tmp_path / "state")
    (folder,) = (tmp_path / "state").iterdir()
    identity = json.loads((folder / "identity.json").read_text())
    (folder / "identity.json").write_text(json.dumps({**identity, "seed": 99}))
    p = start(shards, tmp_path / "state", tmp_path / "model")
    text, _ = p.communicate()
    assert p.returncode == 1 and "seed: 99 there, 3 now" in text


def test_other_execution_settings_go_on_with_a_warning(shards, tmp_path):
    p = start(shards, tmp_path / "state", tmp_path / "model")
    until(p, "step 6")
    p.send_signal(signal.SIGTERM)
    p.communicate()
    text = finish(shards, tmp_path / "state", tmp_path / "model", "threads=2")
    assert "threads 1 → 2" in text and "resumes from the checkpoint" in text
