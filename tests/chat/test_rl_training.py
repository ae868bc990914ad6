"""A reinforcement learning is the one trainer: killed at any moment, on one or two processes, on an adapter."""

import shutil
from pathlib import Path

import pytest
import torch
from killed_runs import kill_at_random
from rl_runs import RECIPE, Job, finish, make_folders, results, training_of, work

from foundry.chat import rl_training
from foundry.chat.rollout_lines import rollout_lines
from foundry.chat.rollouts import ROLLOUTS, read_rollouts
from foundry.chat.verifiers import Verdict
from foundry.config import ConfigError, DataError, FoundryError, load_params
from foundry.config.chat import Lora, Rl
from foundry.models import load_model
from foundry.project.inspection import answer_lines
from foundry.utils.distributed import World

ROOT = Path(__file__).resolve().parents[2]
HERE = World(0, 1, torch.device("cpu"))


@pytest.fixture(scope="module")
def folders(tokenizer, shards, tmp_path_factory):
    return make_folders(tmp_path_factory.mktemp("rl"), tokenizer, shards)


def job(folders, tmp_path, name="run", **recipe):
    return Job(folders, tmp_path / name / "state", tmp_path / name / "model", recipe)


@pytest.fixture(scope="module")
def whole(folders, tmp_path_factory):
    """The uninterrupted run in a process of its own."""
    tmp = tmp_path_factory.mktemp("whole")
    return finish(job(folders, tmp)), tmp / "run" / "model.parquet"


def test_mistake_19_kills_at_random_moments_change_no_bit(folders, whole, tmp_path):
    """SIGKILL after a random step: weights, rollouts, curves and statistics are those of the uninterrupted run."""
    killed = job(folders, tmp_path)
    assert kill_at_random(work, killed, results, kills=4, steps=8, seed=5) == whole[0]


def test_every_answer_is_in_the_file_of_rollouts(whole):
    (_, _, (curve, validations, report, steps)), path = whole
    every = read_rollouts(path)
    assert len(every) == report["rollouts"] == 8 * 2 * 4 and sum(r.counted for r in every) == report["live"] > 0
    assert sum(s["dead_groups"] < 1 for s in steps) >= 6  # nearly every step learnt something
    assert len(curve) == len(steps) == 8 and len(validations) == 2
    for batch in (0, 5):
        found = read_rollouts(path, batch)
        assert found == [r for r in every if r.batch == batch] and len(found) == 8
        assert steps[batch]["reward"] == pytest.approx(sum(r.reward for r in found) / 8)
    for r in every:
        assert len(r.ids) == len(r.logprobs) == len(r.trainer_logprobs) == len(r.parent_logprobs)
        assert r.logprobs == pytest.approx(r.trainer_logprobs, abs=1e-4)
    assert report["parity_max"] < 1e-5 and every[0].parent_logprobs == every[0].trainer_logprobs
    assert steps[0]["kl"] == 0 and all(s["kl"] >= 0 for s in steps) and steps[-1]["kl"] > 0
    assert report["before"].keys() == report["after"].keys() >= {"val_passed/letters", "val_bits_per_byte"}


def test_the_answers_of_a_step_are_shown_with_what_they_taught(whole):
    found = read_rollouts(whole[1], 3)
    shown = list(rollout_lines(4, found, False))
    assert shown[0].startswith("step 4: reward") and len(shown) == 2 + 2 + 8
    for line, r in zip((x for x in shown if x.startswith("  ")), found, strict=True):
        assert f"reward {r.reward:.3f}" in line and repr(r.text) in line
        assert (f"advantage {r.advantage:+.3f}" in line) is r.counted


def test_foundry_inspect_shows_a_step_of_the_finished_run(whole, tmp_path):
    cfg = load_params(ROOT / "params.yaml").model_copy(update={"rl": Rl(**RECIPE)})
    (tmp_path / ROLLOUTS).parent.mkdir(parents=True)
    shutil.copy(whole[1], tmp_path / ROLLOUTS)
    assert list(answer_lines(cfg, tmp_path, 4, False)) == list(rollout_lines(4, read_rollouts(whole[1], 3), False))
    with pytest.raises(ConfigError, match="must lie in 1 to 8"):
        answer_lines(cfg, tmp_path, 9, False)
    with pytest.raises(ConfigError, match="a run with fewer steps"):
        answer_lines(cfg.model_copy(update={"rl": Rl(**{**RECIPE, "steps": 20})}), tmp_path, 12, False)
    with pytest.raises(DataError, match="cannot be read as a file of rollouts"):
        answer_lines(cfg, tmp_path / "elsewhere", 1, False)


@pytest.mark.distributed
def test_two_processes_learn_as_one(folders, tmp_path):
    """Each draws the answers to its prompts; the first batch is the same, and the weights follow it."""
    one = finish(job(folders, tmp_path, "one", steps=3, eval_interval=3))
    two = finish(job(folders, tmp_path, "two", steps=3, eval_interval=3), 2)
    files = [read_rollouts(tmp_path / name / "model.parquet", 0) for name in ("one", "two")]
    assert [(r.ids, r.seed, r.advantage, r.counted) for r in files[0]] == [
        (r.ids, r.seed, r.advantage, r.counted) for r in files[1]
    ]
    a, b = (load_model(tmp_path / name / "model") for name in ("one", "two"))
    for p, q in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-4, rtol=1e-3)
    assert one[2][2]["before"] == two[2][2]["before"] and one[2][0][0]["loss"] == pytest.approx(two[2][0][0]["loss"])


def test_an_adapter_learns_too_and_nothing_else_is_trained(folders, tmp_path):
    one = job(folders, tmp_path, method="lora", steps=3, eval_interval=3, lr=0.01)
    learnt = training_of(one, HERE).run(tmp_path / "rollouts.parquet")
    parent = load_model(folders["parent"])
    frozen = {n: p for n, p in learnt.adapted.named_parameters() if not p.requires_grad}
    assert torch.equal(frozen["layers.0.ffn.w_up.base"], parent.layers[0].ffn.w_up.weight)
    assert learnt.report.parity_max < 1e-5 and learnt.model.adapter is None
    assert not torch.equal(learnt.model.layers[0].ffn.w_up.weight, parent.layers[0].ffn.w_up.weight)
    assert learnt.facts.parent_sha256 == learnt.report.parent_sha256 and learnt.facts.base_sha256 == "b" * 64


def test_the_plan_and_the_probe_are_printed_before_the_first_step(folders, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(rl_training.get_logger(), "info", lambda line, *values: said.append(line % values))
    training_of(job(folders, tmp_path, steps=2, eval_interval=2), HERE).run(tmp_path / "rollouts.parquet")
    text = "\n".join(said)
    first = text.index("step 1: reward")
    assert all(
        0 <= text.find(x) < first for x in ("8 prompts (letters 8)", "all steps: 16 answers", "before:", "letters   ")
    )
    assert "KL to the parent 0 (under 0.5)" in text and "sampler against trainer" in text


def test_rewards_that_teach_nothing_stop_the_run_before_it_starts(folders, tmp_path):
    training = training_of(job(folders, tmp_path), HERE)
    training.judge = training.loader.judge = lambda prompt, text: Verdict(0.0)
    with pytest.raises(ConfigError, match="these rewards teach nothing"):
        training.run(tmp_path / "rollouts.parquet")
    assert training.trainer._session is None and not (tmp_path / "rollouts.parquet").exists()


def test_what_does_not_belong_together_is_refused(folders, tmp_path, tokenizer):
    from foundry.models import TrainingFacts, save_model

    facts = TrainingFacts(fingerprint="s", tokenizer_sha256=tokenizer.sha256, index_sha256="i", steps=1, tokens=1)
    save_model(tmp_path / "base", load_model(folders["parent"]), facts)
    with pytest.raises(DataError, match="did not learn to answer in this chat template"):
        training_of(job({**folders, "parent": tmp_path / "base"}, tmp_path), HERE)
    with pytest.raises(ConfigError, match="on every process: set runtime"):
        fsdp = job(folders, tmp_path)
        fsdp.runtime = {"parallel": "fsdp"}
        training_of(fsdp, World(0, 2, torch.device("cpu")))
    with pytest.raises(FoundryError, match="names nothing"):
        training_of(job(folders, tmp_path, tasks=["nothing"]), HERE)
    with pytest.raises(ValueError, match="each task once"):
        Rl(tasks=["a", "a"], lora=Lora())
