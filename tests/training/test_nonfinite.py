"""A loss or gradient that is not finite is found before it changes anything; `train.on_nonfinite` says what follows."""

import json
import threading
from contextlib import nullcontext

import pytest
import torch

from foundry.config import CheckpointError, FoundryError, ModelConfig, Runtime, TrainConfig
from foundry.models.facts import SkipDecision
from foundry.training import Trainer
from foundry.training import checkpoints as module
from foundry.training import numerics as arithmetic
from foundry.training.pretraining import NextToken
from foundry.training.state import WINDOW, TrainState

MODEL = ModelConfig(
    vocab_size=400, dim=32, n_layers=2, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32, dropout=0.1
)
TRAIN = TrainConfig(steps=12, tokens_per_step=256, warmup_steps=1, log_interval=1, eval_interval=12, eval_tokens=600)
RUNTIME = Runtime(device="cpu", precision="float32", threads=1, checkpoint_interval=3)


class Poisoned(NextToken):
    """A loss (or gradient only) that is not a number for some batches, as a damaged batch would make it."""

    trainer: Trainer

    def __init__(self, batches, how):
        super().__init__(RUNTIME.loss_chunk, 0.0)
        self.batches, self.how = batches, how

    def __call__(self, model, *batch):
        total, nats = super().__call__(model, *batch)
        if self.trainer.skipped.batch(self.trainer.session().state.step) in self.batches:
            total = total * float("nan")
            nats = nats * float("nan") if self.how == "loss" else nats
        return total, nats


def made(shards, state, poisoned=(), how="loss", **train):
    loss = Poisoned(poisoned, how)
    config = TRAIN.model_copy(update=train)
    loss.trainer = Trainer.from_shards(MODEL, config, shards, seed=3, runtime=RUNTIME, state=state, loss=loss)
    return loss.trainer


def weights(result):
    return [p.detach().clone() for p in result.model.parameters()]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("how", "expected"), [("loss", "the loss is nan"), ("gradient", "the gradient's norm is nan")])
@pytest.mark.parametrize(
    "onednn", [False, True]
)  # what an AMD processor with AVX512-BF16 multiplies by, on any processor
def test_halt_names_step_shard_and_documents_and_leaves_the_weights(
    shards, tmp_path, monkeypatch, how, expected, onednn
):
    monkeypatch.setattr(arithmetic, "faster_float32", lambda: onednn)
    trainer = made(shards, tmp_path, {5}, how)
    with pytest.raises(FoundryError, match=rf"step 6: {expected}.*shard-\d+.arrow [0-9a-f]{{16}}.*Lower train.lr") as e:
        trainer.fit()
    assert "on_nonfinite: skip or rollback" in str(e.value)
    # The weights are those after five steps. `fit` multiplies inside `numerics`, so the reference does, too.
    other = made(shards, tmp_path / "other", steps=12)
    with arithmetic.numerics(RUNTIME, other.world):
        session = other.session()
        state = session.state
        for _ in range(5):
            session.step(state)
            state.step += 1
    assert same(trainer.session().state.model.parameters(), state.model.parameters())


def skipping(shards, state, batches, **train):
    """An untouched run that skips these batches from the start."""
    trainer = made(shards, state, **train)
    for b in batches:
        trainer.skipped.add(SkipDecision(step=0, reason="by the test", batches=[b]))
    return trainer.fit()


def test_skip_passes_over_the_batch_and_nothing_else(shards, tmp_path):
    trainer = made(shards, tmp_path / "a", {5, 8}, on_nonfinite="skip")
    result = trainer.fit()
    assert [d.batches for d in result.facts.skipped_batches] == [[5], [8]] and len(result.curve) == 12
    assert all(torch.isfinite(p).all() for p in result.model.parameters())
    expected = skipping(shards, tmp_path / "b", [5, 8], on_nonfinite="skip")
    assert same(weights(result), weights(expected)) and result.curve == expected.curve


@pytest.mark.parametrize("batch", [1, 7])
def test_rollback_returns_to_a_checkpoint_and_passes_over_the_window(shards, tmp_path, batch):
    options = {"on_nonfinite": "rollback", "rollback_steps": 3}
    result = made(shards, tmp_path / "a", {batch}, **options).fit()
    window = list(range(max(0, batch - 2), batch + 1))
    (decision,) = result.facts.skipped_batches
    assert decision.batches == window and "the loss is nan" in decision.reason
    expected = skipping(shards, tmp_path / "b", window, **options)
    assert same(weights(result), weights(expected)) and result.curve == expected.curve
    # A rerun beside the decisions repeats them without meeting the batch; one without them comes to the same.
    again = made(shards, tmp_path / "a", {batch}, **options)
    assert json.loads((again.folder / "skipped.json").read_text()) == [decision.model_dump()]
    assert same(weights(again.fit()), weights(result))
    again_from_scratch = made(shards, tmp_path / "c", {batch}, **options).fit()
    assert same(weights(again_from_scratch), weights(result))


def test_a_rollback_removes_the_checkpoints_of_the_trajectory_that_it_leaves(shards, tmp_path, monkeypatch):
    """One of them that is still being written is waited for. A kill right after must not resume from any of them."""
    trainer = made(shards, tmp_path, on_nonfinite="rollback", rollback_steps=4)
    trainer.checkpoints.keep = 9
    session = trainer.session()
    for step in (3, 7):
        session.state.step = step
        trainer.checkpoints.save(step, *session.state.state_dict())
    written, go = module.write_marker, threading.Event()
    monkeypatch.setattr(module, "write_marker", lambda *a: (go.wait(0.5), written(*a))[1])
    session.state.step = 8
    trainer.checkpoints.save(8, *session.state.state_dict())
    trainer.recovery(session.state, "the loss is nan", lambda: None)  # skips steps 6 to 9: back to step 5 or earlier
    assert session.state.step == 3 and trainer.checkpoints.steps() == [0, 3]


def test_tensorboard_shows_what_was_written_last_however_soon_the_writers_follow_each_other(tmp_path):
    """Names of its files end in the writer's number: of one second, the tenth is sorted before the ninth."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from foundry.training.callbacks import TensorBoard

    for n in range(1, 12):
        board = TensorBoard(tmp_path, 0)
        board.log(1, {"loss": float(n)})
        board.on_end()
    assert [e.value for e in EventAccumulator(str(tmp_path)).Reload().Scalars("loss")] == [11.0]


@pytest.mark.parametrize("killed", ["", "before the sinks know", "before it is recorded"])
def test_after_a_rollback_the_spool_and_tensorboard_have_the_numbers_of_the_curve(
    shards, tmp_path, monkeypatch, killed
):
    """The batch of step 9 is not finite: training returns to step 3, and steps 4 to 8 then have other batches."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from foundry.tracking.spool import Spool

    def run():
        trainer = made(shards, tmp_path / "a", {8}, on_nonfinite="rollback", rollback_steps=4, eval_interval=2)
        trainer.runtime = trainer.runtime.model_copy(update={"tensorboard": str(tmp_path / "board")})
        spool = Spool(tmp_path / "spool")
        spool.log(7, {"system/cpu": 1.0})
        trainer.callbacks.append(spool)
        return trainer

    first = run()
    if killed:
        at = (first.skipped, "add") if killed == "before it is recorded" else (first.callbacks[0], "back_to")
        monkeypatch.setattr(*at, lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            first.fit()
    result = (run() if killed else first).fit()
    assert result.facts.skipped_batches[0].batches == [5, 6, 7, 8]
    spool, points = Spool(tmp_path / "spool"), {}
    for key, value, _, step in spool.pending(10**6).points:
        assert points.setdefault(key, {}).setdefault(step, value) == value
    assert points["system/cpu"] == {7: 1.0}
    board = EventAccumulator(str(tmp_path / "board" / result.facts.fingerprint)).Reload()
    for key, rows in {"loss": result.curve, "val_loss": result.validations}.items():
        expected = {row["step"]: pytest.approx(row[key], rel=1e-5) for row in rows}
        assert len(expected) in (6, 12) and points[key] == expected
        assert [(e.step, e.value) for e in board.Scalars(key)] == list(expected.items())
    # The trajectory that was left had other losses: there was something to confuse.
    assert spool.path.read_text().count('"back"') >= 1
    lines = [json.loads(line) for line in spool.path.read_text().splitlines()]
    steps = [line["s"] for line in lines if "loss" in line.get("m", {})]
    assert len(steps) > len(set(steps)) == 12


def test_a_run_of_an_earlier_version_that_skipped_batches_is_refused_and_begun_from_by_no_other(shards, tmp_path):
    """Its list had another name: without it, the run would read other batches than those of its checkpoints."""
    wsd = {"schedule": "wsd", "decay_fraction": 0.5}
    short = made(shards, tmp_path, **wsd)
    short.fit()
    assert made(shards, tmp_path, steps=20, **wsd).run_folder.shorter_runs()
    (short.folder / "passed.json").write_text("[]")
    assert not made(shards, tmp_path, steps=20, **wsd).run_folder.shorter_runs()
    with pytest.raises(CheckpointError, match=r"passed\.json is the list of skipped batches of an earlier version"):
        made(shards, tmp_path, **wsd)


def test_a_run_that_passes_over_too_much_is_given_up(shards, tmp_path):
    with pytest.raises(FoundryError, match="6 batches were skipped before"):
        made(shards, tmp_path, set(range(3, 40)), on_nonfinite="skip").fit()


@pytest.mark.parametrize(("before", "given_up"), [(10, False), (11, True)])
def test_a_run_may_pass_over_one_batch_in_twenty(shards, tmp_path, before, given_up):
    trainer = made(shards, tmp_path, on_nonfinite="skip", steps=200)
    trainer.skipped.add(SkipDecision(step=0, reason="before", batches=list(range(1000, 1000 + before))))
    answer = pytest.raises(FoundryError, match=f"{before} batches were skipped") if given_up else nullcontext()
    with answer:
        trainer.recovery(trainer.session().state, "the loss is nan", None)
    assert len(trainer.skipped.decisions) == (1 if given_up else 2)


def test_a_loss_is_a_jump_above_six_deviations_of_the_last_ones():
    def watched(deviations):
        state = TrainState(torch.nn.Module(), None, None, {})
        for i in range(WINDOW):
            assert state.watch(3.0 + 0.1 * (-1) ** i) is None  # mean 3, standard deviation 0.1
        return state.watch(3.0 + 0.1 * deviations)

    assert [watched(d) for d in (-50, 0, 3, 5.9)] == [None] * 4
    assert watched(6.1) == pytest.approx(6.1) and watched(20) == pytest.approx(20)


def test_a_jump_of_the_loss_is_told():
    state = TrainState(torch.nn.Module(), None, None, {})
    assert [state.watch(3 + 0.01 * (i % 7)) for i in range(WINDOW)] == [None] * WINDOW
    assert state.watch(3.02) is None and len(state.window) == WINDOW
    assert state.watch(4.0) > 6


def kept(state):
    """Copies of the weights and of every optimizer's moments."""
    tensors = {**state.model.state_dict(), **state.optimizers.tensors()}
    return {k: v.clone() for k, v in tensors.items()}


@pytest.mark.parametrize("name", ["tok_embeddings.weight", "layers.0.attention.wq.weight"], ids=["AdamW's", "Muon's"])
def test_in_float16_an_overflow_in_one_optimizers_gradients_stops_the_step_of_both(shards, tmp_path, name):
    runtime = RUNTIME.model_copy(update={"precision": "float16"})
    trainer = Trainer.from_shards(MODEL, TRAIN, shards, seed=3, runtime=runtime, state=tmp_path)
    session, factor = trainer.session(), [1.0]
    state = session.state
    dict(state.model.named_parameters())[name].register_hook(lambda g: g * factor[0])

    def step(by=1.0):
        factor[0] = by
        _, norm, _ = session.step(state)
        state.step += 1
        return norm

    step()
    before, scale = kept(state), state.scaler.get_scale()
    assert step(float("inf")) == float("inf")
    assert state.scaler.get_scale() == scale / 2
    after = kept(state)
    assert len(before) > 20 and before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    assert step() < 100 and state.scaler.get_scale() == scale / 2
    moved = [k for k, v in kept(state).items() if not torch.equal(v, before[k])]
    assert {"tok_embeddings.weight", "layers.0.attention.wq.weight", "layers.0.attention.wq.weight/momentum"} <= set(
        moved
    )


def test_in_float16_a_gradient_that_no_scale_helps_is_answered_as_any_other(shards, tmp_path):
    """The scale halves down to 1; the step that still overflows halts the run, with weights and scale as they were."""
    runtime = RUNTIME.model_copy(update={"precision": "float16"})
    train = TRAIN.model_copy(update={"steps": 40})
    trainer = Trainer.from_shards(MODEL, train, shards, seed=3, runtime=runtime, state=tmp_path)
    state = trainer.session().state
    state.model.norm.weight.register_hook(lambda g: g * float("nan"))
    before = kept(state)
    with pytest.raises(FoundryError, match="step 17: the gradient's norm is nan"):  # 65,536 is 2 to the power of 16
        trainer.fit()
    assert state.scaler.get_scale() == 1 and same(before.values(), kept(state).values())
