"""Fine-tuning is the one trainer on conversations: exact arithmetic, killed at any moment, on one process or two."""

import math

import pytest
import sft_runs
import torch
from conversations import write_conversations
from killed_runs import drain, kill_at_random, start
from safetensors.torch import load
from sft_runs import Job, finish, make_base, results, tuning_of, work

from foundry.chat.loader import ChatLoader
from foundry.config import ConfigError, DataError
from foundry.config.chat import Lora
from foundry.data.tokens.shards import Shards
from foundry.models import load_model, load_trained_model
from foundry.models.adapter import merged
from foundry.models.adapter_files import load_adapted
from foundry.training import Trainer
from foundry.training.pretraining import HeldOutText
from foundry.utils.distributed import World
from foundry.utils.targets import IGNORE

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folders(tokenizer, shards, tmp_path_factory):
    tmp = tmp_path_factory.mktemp("sft")
    return {
        "base": make_base(tmp / "base", tokenizer),
        "tokenizer": tokenizer.path.parent,
        "chat": write_conversations(tmp / "chat", tokenizer),
        "text": shards,
    }


def job(folders, tmp_path, name="run", **recipe):
    return Job(folders, tmp_path / name / "state", tmp_path / name / "model", recipe)


def run(job):
    """The fine-tuning, in this process."""
    tuning = tuning_of(job, HERE)
    return tuning, tuning.run()


def full_mask(monkeypatch):
    """Every token but the first one of a conversation is learnt, as in pre-training."""
    masked = ChatLoader.tensors

    def tensors(self, step, documents):
        tokens, _, segments = masked(self, step, True)
        following = torch.full_like(tokens, IGNORE)
        same = (segments[:, 1:] == segments[:, :-1]) & (segments[:, 1:] >= 0)
        following[:, :-1] = torch.where(same, tokens[:, 1:], IGNORE)
        return tokens, following, segments if documents else None

    monkeypatch.setattr(ChatLoader, "tensors", tensors)


def test_with_a_full_mask_fine_tuning_is_pre_training_bit_for_bit(folders, tmp_path, monkeypatch):
    learnt = run(job(folders, tmp_path, "masked", steps=3))[1].model
    full_mask(monkeypatch)
    tuning, tuned = run(job(folders, tmp_path, steps=3))
    text = HeldOutText(Shards(folders["text"], "val"), 300, 128, 1024)
    recipe = tuning.sft.train_config(document_mask=True)
    model = load_model(folders["base"])
    trainer = Trainer(
        model, recipe, tuning.loader, validator=text, seed=3, runtime=tuning.trainer.runtime, state=tmp_path / "plain"
    )
    expected = trainer.fit().model.state_dict()
    found = tuned.model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert not torch.equal(learnt.tok_embeddings.weight, expected["tok_embeddings.weight"])  # the mask matters


def test_a_new_adapter_begins_with_the_metrics_of_its_base_and_trains_nothing_else(folders, tmp_path):
    tuning, tuned = run(job(folders, tmp_path, method="lora", steps=4))
    first = tuning_of(job(folders, tmp_path, "full", steps=4), HERE)
    base = load_model(folders["base"])
    assert tuned.report.before == first._measured(base)
    assert tuned.report.after["val_loss"] < tuned.report.before["val_loss"]
    assert tuned.report.trained_params < 0.25 * tuned.report.params
    frozen = {n: p for n, p in tuned.adapted.named_parameters() if not p.requires_grad}
    assert torch.equal(frozen["layers.0.ffn.w_up.base"], base.layers[0].ffn.w_up.weight) and len(frozen) == 20
    rows = torch.tensor(tuned.adapted.adapter.rows)
    changed = (tuned.model.tok_embeddings.weight != base.tok_embeddings.weight).any(1).nonzero().flatten()
    assert changed.tolist() == rows.tolist()
    assert set(tuning.trainer.session().state.state_dict()[0]) >= {"model/layers.0.ffn.w_up.lora_A"}
    assert not any(".base" in name for name in tuning.trainer.session().state.state_dict()[0])


def test_the_report_says_where_the_model_came_from(folders, tmp_path):
    _, tuned = run(job(folders, tmp_path, steps=3))
    _, base = load_trained_model(folders["base"])
    assert tuned.report.base_sha256 == tuned.report.parent_sha256 == base.weights_sha256
    assert tuned.facts.template_sha256 == tuned.report.template_sha256 is not None
    after = tuned.report.after
    assert {"val_loss/list", "val_loss/talk", "val_answer_bits_per_byte/list", "val_bits_per_byte"} <= set(after)
    assert after["val_answer_bits_per_byte"] > 0 and len(tuned.validations) == 1


def test_validation_is_the_loss_of_each_conversation_alone_over_what_is_learnt(folders, tmp_path):
    tuning = tuning_of(job(folders, tmp_path), HERE)
    model, found = load_model(folders["base"]), tuning._measured(load_model(folders["base"]))
    nats = tokens = size = 0.0
    for e in tuning.validator.examples:
        ids = torch.from_numpy(e.tokens.astype("int64"))
        targets = torch.where(torch.from_numpy(e.learnt), ids, IGNORE)
        with torch.no_grad():
            nats += model(ids[None, :-1], targets[None, 1:], reduction="sum")[1].item()
        tokens, size = tokens + e.learnt.sum(), size + e.n_bytes
    assert found["val_loss"] == pytest.approx(nats / tokens, rel=1e-5)
    assert found["val_answer_bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


def test_mistake_13_micro_batches_with_unequal_masks_weigh_every_token_the_same(folders, tmp_path, tokenizer):
    """A mean of the micro-batches' means would weigh the tokens of short answers more."""
    folders = {**folders, "base": make_base(tmp_path / "base", tokenizer, dropout=0.0)}
    whole = job(
        folders,
        tmp_path,
        "whole",
        steps=1,
        warmup_steps=0,
        schedule="constant",
        optimizer="adamw",
        eps=1.0,
        grad_clip=0.0,
    )
    parts = Job(folders, tmp_path / "parts" / "state", tmp_path / "parts" / "model", whole.recipe)
    parts.runtime = {"micro_batch_tokens": 128}
    (tuning, a), (_, b) = run(whole), run(parts)
    _, targets, _ = tuning.loader.tensors(0, True)
    counts = (targets != IGNORE).sum(1)
    assert counts.unique().numel() > 1
    assert a.curve[0]["loss"] == pytest.approx(b.curve[0]["loss"], rel=1e-5)
    assert a.curve[0]["grad_norm"] == pytest.approx(b.curve[0]["grad_norm"], rel=1e-5)
    assert torch.allclose(a.model.tok_embeddings.weight, b.model.tok_embeddings.weight, atol=1e-7)
    model = load_model(folders["base"]).train(False)
    tokens, targets, segments = tuning.loader.tensors(0, True)
    sums = [
        model.summed_loss(x[None], y[None], s[None], chunk=1024)[0].item()
        for x, y, s in zip(tokens, targets, segments, strict=True)
    ]
    planted = sum(s / n for s, n in zip(sums, counts.tolist(), strict=True)) / len(sums)
    assert planted != pytest.approx(sum(sums) / counts.sum().item(), rel=1e-4)  # the mistake would be seen


def test_mistake_14_an_adapter_without_the_marker_rows_is_refused_on_a_base(folders, tmp_path):
    with pytest.raises(ConfigError, match="can never end an answer"):
        tuning_of(job(folders, tmp_path, method="lora", lora=Lora(markers=False)), HERE)
    _, tuned = run(job(folders, tmp_path, "with", method="lora", steps=4))
    base = load_model(folders["base"])
    rows = list(tuned.adapted.adapter.rows)
    moved = (tuned.model.tok_embeddings.weight - base.tok_embeddings.weight)[rows].norm(dim=1)
    assert moved.min() > 1e-3


def test_mistake_17_the_report_of_an_int8_run_has_the_loss_on_both_bases(folders, tmp_path):
    lora = Lora(rank=4, alpha=8.0, base_weights="int8")
    tuning, tuned = run(job(folders, tmp_path, method="lora", lora=lora, steps=4))
    assert tuning.trainer.runtime.recompute
    assert tuned.report.on_exact_base["val_loss"] != tuned.report.after["val_loss"]
    assert tuned.report.on_exact_base["val_loss"] == pytest.approx(tuned.report.after["val_loss"], rel=0.02)
    measured = tuning._measured(tuned.model)  # the merged model is the one that was trained
    assert measured["val_loss"] == pytest.approx(tuned.report.after["val_loss"], rel=1e-5)


def test_mistake_18_the_first_step_has_the_methods_own_rate_and_a_new_optimizer(folders, tmp_path):
    recipe = {"steps": 4, "warmup_steps": 2, "lr": 1e-3, "lora_lr": 1e-2}
    full, lora = (run(job(folders, tmp_path, m, method=m, **recipe))[1] for m in ("full", "lora"))
    assert full.curve[0]["lr"] == pytest.approx(1e-3 / 3, rel=1e-4)
    assert lora.curve[0]["lr"] == pytest.approx(1e-2 / 3, rel=1e-4)
    tuning = tuning_of(job(folders, tmp_path, "planned", **recipe), HERE)
    assert "sft.lr 0.001" in tuning.lines()[0] and "sft.lora_lr 0.01" in tuning.lines()[0]
    assert not tuning.trainer.session().state.optimizers.tensors()


@pytest.mark.parametrize("method", ["full", "lora"])
def test_mistake_19_kills_at_random_moments_change_no_bit(folders, tmp_path, method):
    """SIGKILL after a random step, which the next life resumes: weights, adapter, curves and validations are equal."""
    expected = finish(job(folders, tmp_path, "whole", method=method))
    killed = job(folders, tmp_path, "killed", method=method)
    assert kill_at_random(work, killed, results, kills=5, steps=12, seed=7) == expected
    assert len(list(killed.state.iterdir())) == 1


def test_a_finished_run_is_not_trained_again(folders, tmp_path):
    again = job(folders, tmp_path, steps=4)
    first = finish(again)
    (process,), steps = start(work, again)
    assert drain(steps) is None  # no step was done
    process.join()
    assert process.exitcode == 0 and results(again) == first


@pytest.mark.distributed
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_two_processes_train_as_one(folders, tmp_path, tokenizer, parallel):
    plain = {**folders, "base": make_base(tmp_path / "base", tokenizer, dropout=0.0)}
    one = Job(plain, tmp_path / "1" / "state", tmp_path / "1" / "model", {"method": "lora", "steps": 6})
    two = Job(plain, tmp_path / "2" / "state", tmp_path / "2" / "model", one.recipe, {"parallel": parallel})
    (whole, adapter), numbers = finish(one)
    (whole_2, adapter_2), numbers_2 = finish(two, 2)
    for mine, theirs in ((load(whole), load(whole_2)), (load(adapter), load(adapter_2))):
        assert all(torch.allclose(mine[name], theirs[name], atol=2e-5) for name in mine)
    losses = [[row["loss"] for row in curve] for curve, *_ in (numbers, numbers_2)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert numbers[1][-1] == pytest.approx(numbers_2[1][-1], rel=1e-4)
    again = merged(load_adapted(f"{two.out}.adapter", plain["base"])[0])
    assert torch.equal(again.tok_embeddings.weight, load_model(two.out).tok_embeddings.weight)


def test_data_of_another_tokenizer_is_refused(folders, tmp_path, tokenizer):
    class Other:
        sha256 = "0" * 64

    other = make_base(tmp_path / "other", Other)
    with pytest.raises(DataError, match="belong to different tokenizers"):
        tuning_of(Job({**folders, "base": other}, tmp_path / "s", tmp_path / "o"), HERE)
    assert sft_runs.RECIPE["steps"] == 12
