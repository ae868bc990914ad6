"""Pre-training's loss and validator, and that the loop takes others in their place."""

import math
from typing import ClassVar

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn import functional as F

from foundry.config import LockError, ModelConfig, Runtime, TrainConfig
from foundry.data.tokens.loader import DataLoader
from foundry.data.tokens.shards import Shards
from foundry.models import MiniLLM
from foundry.training import Trainer
from foundry.training.pretraining import HeldOutText, NextToken
from foundry.training.schedule import stable_steps
from foundry.utils.locks import exclusive

MODEL = ModelConfig(vocab_size=400, dim=32, n_layers=1, n_heads=2, n_kv_heads=1, ffn_dim=48, max_seq_len=32)
TRAIN = TrainConfig(steps=4, tokens_per_step=256, warmup_steps=1, log_interval=1, eval_interval=2, eval_tokens=600)
RUNTIME = Runtime(device="cpu", precision="float32", threads=1)


def test_bits_per_byte_of_held_out_text_are_those_of_each_document_read_by_itself(clean, shards):
    """Word for word: the raw bytes of the validation split, their tokens in windows of the context."""
    torch.manual_seed(1)
    model = MiniLLM(MODEL)
    validator = HeldOutText(Shards(shards, "val"), 10**9, 32, 1024)
    nats, tokens = 0.0, 0
    for ids in (d[:-1] for d in validator.documents):  # the end symbol is not scored
        for at in range(0, len(ids) - 1, 32):
            window = torch.from_numpy(ids[at : at + 33].astype("int64"))[None]
            logits = model(window[:, :-1])[0]
            nats += F.cross_entropy(logits[0].double(), window[0, 1:], reduction="sum").item()
            tokens += window.shape[1] - 1
    texts = [r["text"] for r in pq.read_table(clean / "val").select(["text"]).to_pylist()]
    n_bytes = sum(validator.n_bytes)
    assert len(validator.documents) > 1 and n_bytes == sum(len(t.encode()) for t in texts)
    got = validator(model, lambda f, *batch: f(model, *batch), torch.float32, 4)
    assert got == {
        "val_loss": pytest.approx(nats / tokens, rel=1e-5),
        "val_bits_per_byte": pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5),
    }


def test_the_loss_counts_targets_that_are_not_padding_token_0_among_them():
    loss = NextToken(16, 0.0)
    assert loss.count(torch.zeros(2, 3), torch.tensor([[0, 5, -100], [-100, -100, 7]])).item() == 3


class Squares:
    """A loss and a validator of another kind: the weights themselves; each row counts once."""

    identity: ClassVar = {"kind": "squares"}

    def count(self, tokens, *rest):
        return torch.tensor(len(tokens))

    def __call__(self, model, tokens, *rest):
        if callable(tokens):  # as a validator: (model, apply, precision, rows)
            return {"val_squares": tokens(lambda m: sum(p.square().sum() for p in m.parameters())).item()}
        total = len(tokens) * sum(p.square().sum() for p in model.parameters())
        return total, total.detach()


def test_another_loss_and_validator_change_no_line_of_the_loop(shards, tmp_path):
    squares = Squares()
    trainer = Trainer.from_shards(
        MODEL, TRAIN, shards, runtime=RUNTIME, state=tmp_path, loss=squares, validator=squares
    )
    before = sum(p.square().sum() for p in trainer.session().state.model.parameters()).item()
    result = trainer.fit()
    after = sum(p.square().sum() for p in result.model.parameters()).item()
    assert result.curve[0]["loss"] == pytest.approx(before, rel=1e-5) and after < before
    assert [row["step"] for row in result.validations] == [2, 4]
    assert result.validations[-1]["val_squares"] == pytest.approx(after, rel=1e-5)
    # The run is another one: it shares neither folder nor checkpoints with pre-training on the same data.
    assert trainer.identity["loss.kind"] == trainer.identity["validator.kind"] == "squares"
    assert trainer.fingerprint != Trainer.from_shards(MODEL, TRAIN, shards, runtime=RUNTIME, state=tmp_path).fingerprint


def test_the_order_is_part_of_the_identity_where_its_seed_is_another(shards, tmp_path):
    found = {}
    for seed in (3, 4):
        trainer = Trainer(MODEL, TRAIN, DataLoader(shards, 8, 32, seed), seed=3, runtime=RUNTIME, state=tmp_path)
        found[seed] = trainer.identity.get("order_seed"), trainer.fingerprint
    assert found[3][0] is None and found[4][0] == 4 and found[3][1] != found[4][1]


@pytest.mark.parametrize("policy", ["halt", "skip", "rollback"])
def test_what_a_rollback_returns_to_is_never_removed(shards, tmp_path, policy):
    train = TRAIN.model_copy(update={"on_nonfinite": policy})
    trainer = Trainer.from_shards(MODEL, train, shards, runtime=RUNTIME, state=tmp_path)
    assert trainer.checkpoints.pinned == {stable_steps(train)} | ({0} if policy == "rollback" else set())


def test_two_processes_do_not_train_one_run(shards, tmp_path):
    trainer = Trainer.from_shards(MODEL, TRAIN, shards, runtime=RUNTIME, state=tmp_path)
    with exclusive(trainer.folder / "lock", "another training"), pytest.raises(LockError):
        trainer.fit()
    assert not (trainer.folder / "checkpoints").exists()


def test_the_speed_of_a_run_counts_the_steps_that_it_made(shards, tmp_path):
    trainer = Trainer.from_shards(MODEL, TRAIN, shards, runtime=RUNTIME, state=tmp_path)
    assert trainer.save_checkpoint(tmp_path / "mine") == tmp_path / "mine"
    done = trainer.train()
    assert done["steps_per_second"] == pytest.approx(4 / done["elapsed_time"])
    assert trainer.train()["steps_per_second"] == 0  # nothing was left to do
