"""Before a reinforcement learning: which prompts there are, and whether their rewards can teach anything."""

import math

import pytest
import torch
from toy_rl import ends, even, pool, short, tiny

from foundry.chat.example import Example, Turn
from foundry.chat.probe import check_probe, probe, probe_lines
from foundry.chat.prompt_pool import evenly, prompt_pool
from foundry.chat.rl_validation import HeldOutRewards
from foundry.chat.verifiers import Verdict
from foundry.config import ConfigError
from foundry.tokenizers.chat import Message, encode_chat


def probed(tokenizer, judge, *, model=None, limit=12, **changes):
    options = {"per_task": 4, "samples": 6, "seed": 1, **changes}
    return probe(model or ends(tiny(), tokenizer), tokenizer, pool(), limit=limit, judge=judge, **options)


def test_the_probe_measures_what_answers_earn(tokenizer):
    prompts = pool(9, "a") + pool(2, "b")
    model = ends(tiny(), tokenizer)
    found = probe(model, tokenizer, prompts, per_task=4, samples=6, limit=12, seed=1, judge=short)
    assert [(t.task, t.prompts, t.samples) for t in found] == [("a", 4, 6), ("b", 2, 6)]
    a = found[0]
    assert 0 < a.passed.low <= a.passed.value <= a.passed.high < 1 and a.live == 1 and a.reward == a.passed.value
    assert found == probe(model, tokenizer, prompts, per_task=4, samples=6, limit=12, seed=1, judge=short)
    check_probe(found, 12)
    head, *rows = probe_lines(found)
    assert len(rows) == 2 and f"{a.passed.value:.1%}" in rows[0] and "prompts that teach" in head


@pytest.mark.parametrize(("score", "message"), [(0.0, "0% of the answers are right"), (1.0, "100% of the answers")])
def test_mistake_23_rewards_that_never_differ_are_refused_before_the_start(tokenizer, score, message):
    # An answer that another control symbol ended has no reward, so only the two ends may be likely.
    found = probed(tokenizer, lambda prompt, text: Verdict(score), model=ends(tiny(), tokenizer, 12.0))
    with pytest.raises(ConfigError, match=message) as e:
        check_probe(found, 12)
    assert "no step would change a weight" in str(e.value) and ("train the parent" in str(e.value)) is (score == 0)


def test_mistake_24_a_limit_that_cuts_the_answers_off_is_refused_with_the_length_that_is_needed(tokenizer):
    found = probed(tokenizer, even, limit=1)
    assert found[0].truncated > 0.5
    with pytest.raises(ConfigError, match="met the limit of 1 tokens, and what is cut off teaches nothing"):
        check_probe(found, 1)
    check_probe(probed(tokenizer, even), 12)
    never = probed(tokenizer, even, model=ends(tiny(), tokenizer, -9.0), limit=2)
    with pytest.raises(ConfigError, match="none ended by itself"):
        check_probe(never, 2)


def example(question, task="sum", verifier="exact", **changes):
    turns = (Turn("system", "Be short."), Turn("user", question), Turn("assistant", "5"))
    arguments = {"expected": "5"} if verifier else {}
    return Example(turns, task, "s", "d1", 0, "train", verifier, arguments, "CC0-1.0", **changes)


def test_every_example_is_in_the_pool_or_counted(tokenizer):
    examples = [
        example("2 + 3?"),
        example("2 + 3?"),
        example("1 + 4?"),
        example("why?", verifier=None),
        example("x", task="other"),
        example("long " * 40),
    ]
    found = prompt_pool(tokenizer, examples, ["sum"], 10, 100)
    assert len(found.prompts) == 2
    assert (found.unverified, found.other_tasks, found.repeated, found.too_long) == (1, 1, 1, 1)
    turns = [Message("system", "Be short."), Message("user", "2 + 3?")]
    assert found.prompts[0].ids == tuple(encode_chat(tokenizer, turns)) and found.prompts[0].text == "2 + 3?"
    assert "2 prompts (sum 2); left out: 1 of other tasks" in found.line()
    assert len(prompt_pool(tokenizer, examples, [], 10, 100).prompts) == 3
    with pytest.raises(ConfigError, match="names nothing, of which there is no example with a verifier"):
        prompt_pool(tokenizer, examples, ["sum", "nothing"], 10, 100)
    with pytest.raises(ConfigError, match="no example with a verifier fits the context of 20"):
        prompt_pool(tokenizer, examples, [], 10, 20)


def test_prompts_are_chosen_evenly():
    prompts = pool(9, "a") + pool(2, "b")
    assert [p.text[-1] for p in evenly(prompts, 8)] == ["0", "2", "4", "6", "0", "1"]
    assert len(evenly(prompts, 1)) == 1 and evenly(prompts, 100) == prompts


def test_the_validation_is_greedy_repeatable_and_changes_nothing(tokenizer):
    """Answers that do not end earn nothing."""
    model = ends(tiny(), tokenizer, 1.0).train()
    text = type("Text", (), {"identity": {}, "__call__": lambda self, *args: {"val_loss": 2.0}})()
    validator = HeldOutRewards(tokenizer, pool(4, "a") + pool(2, "b"), 8, text, judge=even)
    state = torch.get_rng_state()
    found = validator(model, None, torch.float32, 1)
    assert found == validator(model, None, torch.float32, 1) and found["val_loss"] == 2.0
    assert model.training and torch.equal(state, torch.get_rng_state())
    each = [found["val_passed/a"], found["val_passed/b"]]
    assert math.isclose(found["val_passed"], (4 * each[0] + 2 * each[1]) / 6)
    assert found["val_passed"] <= found["val_ended"]
    other = HeldOutRewards(tokenizer, pool(5), 8, text)
    assert other.identity["prompts_sha256"] != validator.identity["prompts_sha256"]
