"""DPO and the reward model are the one trainer: killed at any moment, on two processes, on an adapter."""

import math

import pytest
import torch
from killed_runs import kill_at_random
from pair_runs import Job, finish, make_folders, results, training_of, work

from foundry.chat.pair_training import against_length
from foundry.chat.pairs import encode_pairs, read_pairs
from foundry.config import ConfigError, DataError
from foundry.config.chat import Lora
from foundry.models import TrainingFacts, load_model, save_model
from foundry.tokenizers import Tokenizer
from foundry.utils.distributed import World

HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("pairs"), tokenizer)


def job(kind, folders, tmp_path, name="run", **recipe):
    return Job(kind, folders, tmp_path / name / "state", tmp_path / name / "model", recipe)


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_mistake_19_kills_at_random_moments_change_no_bit(kind, folders, tmp_path):
    """SIGKILL after a random step: weights, curves and validations are those of the uninterrupted run."""
    whole = finish(job(kind, folders, tmp_path, "whole"))
    killed = job(kind, folders, tmp_path)
    assert kill_at_random(work, killed, results, kills=2, steps=8, seed=5) == whole
    curve, validations, report = whole[1]
    assert curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-5) != curve[-1]["loss"]
    assert len(validations) == 2 and report["before"].keys() == report["after"].keys()
    assert report["before"]["val_loss"] == pytest.approx(math.log(2), abs=1e-6) != report["after"]["val_loss"]


@pytest.mark.distributed
def test_two_processes_learn_as_one(folders, tmp_path):
    one = finish(job("dpo", folders, tmp_path, "one", steps=3, eval_interval=3))
    two = finish(job("dpo", folders, tmp_path, "two", steps=3, eval_interval=3), 2)
    a, b = (load_model(tmp_path / name / "model") for name in ("one", "two"))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)
    assert one[1][2]["before"] == two[1][2]["before"]
    assert one[1][0][0]["loss"] == pytest.approx(two[1][0][0]["loss"])


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_an_adapter_is_trained_and_merged(kind, folders, tmp_path):
    run = job(kind, folders, tmp_path, method="lora", lora=Lora(rank=4, alpha=8.0), steps=4, lr=5e-3)
    training = training_of(run, HERE)
    trained = training.run()
    assert trained.report.trained_params < 0.5 * trained.report.params
    assert trained.adapted is not None and trained.model.adapter is None
    parent = load_model(folders["parent"])
    changed = [n for n, p in trained.model.state_dict().items() if not torch.equal(p, parent.state_dict()[n])]
    assert len([n for n in changed if "layers" in n]) >= 7 and not any("norm" in n for n in changed)
    assert trained.report.after["val_loss"] != trained.report.before["val_loss"]


@pytest.mark.parametrize("kind", ["dpo", "reward"])
def test_the_pairs_that_are_read_are_learnt(kind, folders, tmp_path):
    trained = training_of(job(kind, folders, tmp_path, steps=60, lr=5e-3), HERE).run()
    assert trained.curve[-1]["loss"] < 0.8 * math.log(2)
    if kind == "dpo":
        assert trained.report.after["val_kl"] > 0.01
        assert abs(trained.report.after["val_chosen"]) > 0.1


def test_mistake_22_an_accuracy_that_length_explains_is_not_a_gain(folders, tmp_path):
    pairs, _ = encode_pairs(Tokenizer(folders["tokenizer"]), read_pairs(folders["pairs"], "train"), 48)
    by_length = torch.tensor([p.longer_wins - 0.5 for p in pairs]).numpy()
    accuracy, longer, beats = against_length(pairs, by_length, 1)  # a model that looks at nothing else
    assert accuracy == longer and not beats
    assert against_length(pairs, abs(by_length) + 1, 1)[2]  # a model that is right on every pair


def test_a_parent_with_dropout_or_of_another_template_or_tokenizer_is_refused(tokenizer, folders, tmp_path):
    with_dropout = make_folders(tmp_path / "a", tokenizer, dropout=0.1)
    with pytest.raises(ConfigError, match=r"dropout is 0\.1"):
        training_of(job("dpo", with_dropout, tmp_path), HERE)
    facts = TrainingFacts(fingerprint="s", tokenizer_sha256=tokenizer.sha256, index_sha256="i", steps=1, tokens=1)
    model = load_model(folders["parent"])
    save_model(tmp_path / "base", model, facts)
    with pytest.raises(DataError, match="did not learn to answer"):
        training_of(job("dpo", {**folders, "parent": tmp_path / "base"}, tmp_path), HERE)
    save_model(tmp_path / "other", model, facts.model_copy(update={"tokenizer_sha256": "x"}))
    with pytest.raises(DataError, match="another tokenizer"):
        training_of(job("dpo", {**folders, "parent": tmp_path / "other"}, tmp_path), HERE)


def test_what_decides_the_result_is_in_the_fingerprint(folders, tmp_path):
    base = training_of(job("dpo", folders, tmp_path), HERE).trainer
    for change in ({"beta": 0.2}, {"sft_weight": 0.1}, {"eval_pairs": 3}, {"pairs_per_step": 2}):
        assert training_of(job("dpo", folders, tmp_path, **change), HERE).trainer.fingerprint != base.fingerprint
    assert base.identity["template_sha256"] and base.identity["loss.reference_sha256"]
    assert training_of(job("reward", folders, tmp_path), HERE).trainer.fingerprint != base.fingerprint
