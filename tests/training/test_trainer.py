"""The trainer's numbers depend neither on how the batch is cut, nor on validations, nor on the number of processes."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from foundry.config import ConfigError, FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.models.facts import SkipDecision
from foundry.training import Trainer
from foundry.training.identity import ARITHMETIC
from foundry.utils.device import compiler_problem
from foundry.utils.distributed import World
from foundry.utils.events import MetricsCallback

RUNNER = Path(__file__).with_name("runner.py")
MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=6, tokens_per_step=256, warmup_steps=1, log_interval=1, eval_interval=3, eval_tokens=600)


class Seen(MetricsCallback, list):
    """Keeps (step, numbers)."""

    def log(self, step, metrics):
        self.append((step, metrics))

    def back_to(self, step):
        raise AssertionError("these runs never roll back")


def fit(shards, tmp_path, train=TRAIN, model=MODEL, **runtime):
    seen = Seen()
    settings = Runtime(
        **{"device": "cpu", "precision": "float32", "threads": 1, "checkpoint_interval": 1000, **runtime}
    )
    trainer = Trainer.from_shards(model, train, shards, runtime=settings, state=tmp_path, callbacks=[seen])
    return trainer.fit(), seen


def test_the_loss_falls_and_the_first_one_is_about_ln_v(shards, tmp_path):
    result, seen = fit(shards, tmp_path, TRAIN.model_copy(update={"steps": 40, "eval_interval": 40}))
    losses = [r["loss"] for r in result.curve]
    assert losses[0] == pytest.approx(5.99, abs=0.1) and losses[-1] < losses[0] - 1.5
    assert result.validations[-1]["val_bits_per_byte"] < 3
    assert {s for s, _ in seen} == set(range(1, 41)) and "tokens_per_second" in seen[0][1]


def test_the_reported_numbers_are_what_their_names_say(clean, shards, tmp_path):
    """Bits per byte of the shards' text and operations by Kaplan's count, derived here from the text and the shapes."""
    result, seen = fit(shards, tmp_path)
    training = [m for _, m in seen if "loss" in m]
    texts = pq.read_table(clean / "train").select(["text", "source"]).to_pylist()
    n_bytes = sum(len(r["text"].encode()) for r in texts)
    n_tokens = sum(e.tokens for e in DataLoader(shards, 8, 32).shards.entries)
    weights = (
        2 * (32 * 16 * (2 * 2 + 2 * 1) + 3 * 32 * 48) + 400 * 32
    )  # attention and the layer's inner width; the head
    attention = 2 * 32 * 32  # layers, width, context
    assert len(training) == 6
    for row, numbers in zip(result.curve, training, strict=True):
        assert numbers["loss"] == pytest.approx(row["loss"], rel=1e-5)
        assert numbers["bits_per_byte"] == pytest.approx(row["loss"] * n_tokens / math.log(2) / n_bytes, rel=1e-5)
        assert numbers["gflops"] * 1e9 == pytest.approx(
            numbers["tokens_per_second"] * 6 * (weights + attention), rel=1e-9
        )
    (value,) = (row for row in result.validations if row["step"] == 3)
    assert (3, {k: value[k] for k in ("val_loss", "val_bits_per_byte")}) in seen


def test_tensorboard_gets_every_number_of_training_and_validation(shards, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    result, seen = fit(shards, tmp_path / "state", tensorboard=str(tmp_path / "board"))
    board = EventAccumulator(str(tmp_path / "board" / result.facts.fingerprint)).Reload()
    tags = {name for _, numbers in seen for name in numbers}
    assert set(board.Tags()["scalars"]) == tags and {"loss", "bits_per_byte", "val_loss", "val_bits_per_byte"} <= tags
    for name in tags:
        written = [(e.step, e.value) for e in board.Scalars(name)]
        assert written == [(s, pytest.approx(m[name], rel=1e-6)) for s, m in seen if name in m]
    assert [e.step for e in board.Scalars("val_bits_per_byte")] == [3, 6]


def test_accumulated_micro_batches_equal_the_whole_batch(shards, tmp_path):
    whole, _ = fit(shards, tmp_path / "a")
    cut, _ = fit(shards, tmp_path / "b", micro_batch_tokens=64)
    for a, b in zip(whole.curve, cut.curve, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_validation_has_no_effect_on_training(shards, tmp_path):
    model = MODEL.model_copy(update={"dropout": 0.2})
    rare, _ = fit(shards, tmp_path / "a", TRAIN.model_copy(update={"eval_interval": 6}), model)
    often, _ = fit(shards, tmp_path / "b", TRAIN.model_copy(update={"eval_interval": 1}), model)
    assert len(often.validations) == 6 > len(rare.validations) == 1
    assert rare.curve == often.curve
    assert all(torch.equal(a, b) for a, b in zip(rare.model.parameters(), often.model.parameters(), strict=True))


class OneOfMany(World):
    """A rank's random numbers, and no other rank to wait for."""

    main = True


def test_dropout_differs_between_the_ranks_and_from_step_to_step(shards, tmp_path):
    """The loss of the first batch with the first weights; nothing but the dropped elements can make it another one."""
    model = MODEL.model_copy(
        update={"dropout": 0.3, "zero_init": False}
    )  # a block that begins as the identity has nothing to drop

    def loss(rank, step=0):
        world = OneOfMany(rank, 1, torch.device("cpu"))
        runtime = Runtime(precision="float32", threads=1)
        trainer = Trainer(
            model, TRAIN, DataLoader(shards, 8, 32), world=world, runtime=runtime, state=tmp_path / str(rank)
        )
        session = trainer.session()
        session.state.step = step
        trainer.skipped.decisions = [SkipDecision(step=0, reason="", batches=list(range(8 - step)))]  # always batch 8
        return session.step(session.state)[0]

    assert loss(0) == loss(0) and loss(1) == loss(1)
    assert len({loss(0), loss(1), loss(2), loss(0, step=1)}) == 4


def test_half_precision_with_a_scaler_trains_and_resumes_its_scale(shards, tmp_path):
    whole, _ = fit(shards, tmp_path / "a", precision="float16")
    assert whole.curve[-1]["loss"] < whole.curve[0]["loss"]
    checkpoint = json.loads(next((tmp_path / "a").glob("*/checkpoints/step-00000006/state.json")).read_text())
    assert checkpoint["scaler"]["scale"] > 1
    exact, _ = fit(shards, tmp_path / "b")
    assert whole.curve[0]["loss"] == pytest.approx(exact.curve[0]["loss"], abs=0.01)


def test_bfloat16_autocast_stays_near_float32(shards, tmp_path):
    half, _ = fit(shards, tmp_path / "a", precision="bfloat16")
    exact, _ = fit(shards, tmp_path / "b")
    assert half.curve[-1]["loss"] == pytest.approx(exact.curve[-1]["loss"], abs=0.05)
    assert half.curve != exact.curve  # it did run in the other precision


@pytest.mark.slow
def test_compiled_training_stays_near_eager_and_is_deterministic(shards, tmp_path):
    """Where torch.compile cannot work (no compiler), the wish is refused with the reason."""

    def run(name, *pairs):
        command = [sys.executable, str(RUNNER), str(shards), str(tmp_path / f"state-{name}"), str(tmp_path / name)]
        return subprocess.run([*command, "threads=2", "dropout=0", *pairs], capture_output=True, text=True)

    if problem := compiler_problem():
        done = run("a", "compile=always")
        assert (
            done.returncode == 1
            and "torch.compile does not work here" in done.stderr
            and "Traceback" not in done.stderr
        ), problem
        return
    runs = []
    for name in ("a", "b"):
        done = run(name, "compile=always")
        assert done.returncode == 0 and ", compiled" in done.stdout, done.stderr
        curve = json.loads((tmp_path / f"{name}.curve.json").read_text())[0]
        runs.append(((tmp_path / name / "model.safetensors").read_bytes(), curve))
    assert runs[0] == runs[1]
    assert run("c").returncode == 0
    eager = json.loads((tmp_path / "c.curve.json").read_text())[0]
    assert eager[-1]["loss"] == pytest.approx(runs[0][1][-1]["loss"], rel=1e-3)


def test_compiling_is_left_out_with_the_reason_where_it_does_not_work(shards, tmp_path, monkeypatch, caplog):
    from foundry.utils.log import get_logger

    get_logger().propagate = True
    monkeypatch.setattr("foundry.training.numerics.COMPILE_FROM_FLOPS", 0.0)
    monkeypatch.setenv("CXX", "/nowhere/g++")
    trainer = Trainer.from_shards(
        MODEL, TRAIN, shards, runtime=Runtime(device="cpu", precision="bfloat16"), state=tmp_path
    )
    assert not trainer.execution.compiled and "directory: '/nowhere/g++'" in caplog.text
    with pytest.raises(ConfigError, match=r"/nowhere/g\+\+.* runtime\.compile"):
        Trainer.from_shards(MODEL, TRAIN, shards, runtime=Runtime(device="cpu", compile="always"), state=tmp_path)


def test_a_wrong_vocabulary_is_told(shards, tmp_path):
    with pytest.raises(FoundryError, match="shards have a vocabulary of 400, the model one of 401"):
        Trainer.from_shards(MODEL.model_copy(update={"vocab_size": 401}), TRAIN, shards, state=tmp_path)


def test_rows_longer_than_the_context_are_told(shards, tmp_path):
    with pytest.raises(FoundryError, match="rows have 64 tokens, the model's context is 32"):
        Trainer(MODEL, TRAIN, DataLoader(shards, 4, 64), state=tmp_path)


def test_execution_settings_are_no_part_of_the_fingerprint(shards, tmp_path):
    def fp(**kw):
        return Trainer.from_shards(MODEL, kw.pop("train", TRAIN), shards, state=tmp_path, **kw).fingerprint

    base = fp()
    assert base == fp(runtime=Runtime(threads=7, precision="bfloat16", micro_batch_tokens=64))
    assert len({base, fp(seed=2), fp(train=TRAIN.model_copy(update={"lr": 1e-4}))}) == 3


def test_a_run_of_the_former_code_is_another_run_and_is_not_resumed(shards, tmp_path, monkeypatch):
    former = Trainer.from_shards(MODEL, TRAIN, shards, state=tmp_path)
    monkeypatch.setattr("foundry.training.identity.ARITHMETIC", ARITHMETIC + 1)
    assert Trainer.from_shards(MODEL, TRAIN, shards, state=tmp_path).folder != former.folder
