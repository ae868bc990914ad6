"""The trainer's numbers do not depend on how the batch is cut, on how often it validates, or on the number of processes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundry.config import ConfigError, FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.training import Trainer
from foundry.utils.device import compile_problem

RUNNER = Path(__file__).with_name("runner.py")
MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=6, tokens_per_step=256, warmup_steps=1, log_interval=1, eval_interval=3, eval_tokens=600)


def fit(shards, tmp_path, train=TRAIN, model=MODEL, **runtime):
    seen = []
    settings = Runtime(
        **{"device": "cpu", "precision": "float32", "threads": 1, "checkpoint_interval": 1000, **runtime}
    )
    trainer = Trainer.from_shards(
        model, train, shards, runtime=settings, state=tmp_path, on_metrics=lambda s, m: seen.append((s, m))
    )
    return trainer.fit(), seen


def test_the_loss_falls_and_the_first_one_is_about_ln_v(shards, tmp_path):
    result, seen = fit(shards, tmp_path, TRAIN.model_copy(update={"steps": 40, "eval_interval": 40}))
    losses = [r["loss"] for r in result.curve]
    assert losses[0] == pytest.approx(5.99, abs=0.1) and losses[-1] < losses[0] - 1.5
    assert result.validations[-1]["val_bits_per_byte"] < 3
    assert {s for s, _ in seen} == set(range(1, 41)) and "tokens_per_second" in seen[0][1]


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
    """Where torch.compile cannot work (its linker call breaks at a space in torch's own path), the wish is refused with the reason."""

    def run(name, *pairs):
        command = [sys.executable, str(RUNNER), str(shards), str(tmp_path / f"state-{name}"), str(tmp_path / name)]
        return subprocess.run([*command, "threads=2", "dropout=0", *pairs], capture_output=True, text=True)

    if problem := compile_problem(torch.device("cpu")):
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
    monkeypatch.setattr(
        "torch.compile", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("g++: error: no such compiler"))
    )
    trainer = Trainer.from_shards(
        MODEL, TRAIN, shards, runtime=Runtime(device="cpu", precision="bfloat16"), state=tmp_path
    )
    assert not trainer.compiled and "no such compiler" in caplog.text
    with pytest.raises(ConfigError, match=r"no such compiler.* runtime\.compile"):
        Trainer.from_shards(MODEL, TRAIN, shards, runtime=Runtime(device="cpu", compile="always"), state=tmp_path)


def test_a_wrong_vocabulary_is_told(shards, tmp_path):
    with pytest.raises(FoundryError, match="shards have a vocabulary of 400, the model one of 401"):
        Trainer.from_shards(MODEL.model_copy(update={"vocab_size": 401}), TRAIN, shards, state=tmp_path)


def test_rows_longer_than_the_context_are_told(shards, tmp_path):
    from foundry.data.loader import DataLoader

    with pytest.raises(FoundryError, match="rows have 64 tokens, the model's context is 32"):
        Trainer(MODEL, TRAIN, DataLoader(shards, 4, 64), state=tmp_path)


def test_execution_settings_are_no_part_of_the_fingerprint(shards, tmp_path):
    def fp(**kw):
        return Trainer.from_shards(MODEL, kw.pop("train", TRAIN), shards, state=tmp_path, **kw).fingerprint

    base = fp()
    assert base == fp(runtime=Runtime(threads=7, precision="bfloat16", micro_batch_tokens=64))
    assert len({base, fp(seed=2), fp(train=TRAIN.model_copy(update={"lr": 1e-4}))}) == 3
