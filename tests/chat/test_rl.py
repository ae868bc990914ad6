"""The policy gradient: what a step learns from, that its expectation is exact, and that it learns."""

import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from toy_rl import ALONE, Nothing, ends, even, loader, pool, short, tiny

from foundry.chat import rl
from foundry.chat.rl import Advantages, PolicyGradient, RolloutLoader, advantages, rollouts_file
from foundry.chat.rollouts import draw, read_rollouts
from foundry.chat.verifiers import Verdict
from foundry.config import ConfigError, DataError, FoundryError, Runtime, TrainConfig
from foundry.tokenizers.chat import end_of_turn
from foundry.tokenizers.tokenizer import UNK_ID
from foundry.training import Trainer
from foundry.utils.distributed import World

RUNTIME = Runtime(threads=1, device="cpu", precision="float32", checkpoint_interval=2, compile="never")


def trainer(data, folder, steps=3, **recipe):
    recipe = {
        "steps": steps,
        "warmup_steps": 0,
        "log_interval": 1,
        "eval_interval": 100,
        "schedule": "constant",
        **recipe,
    }
    recipe = TrainConfig(optimizer="adamw", **recipe)
    return Trainer(
        data.model,
        recipe,
        data,
        loss=PolicyGradient(64),
        validator=Nothing(),
        seed=3,
        runtime=RUNTIME,
        world=ALONE,
        state=Path(folder) / "state",
    )


# Advantages.


def test_an_advantage_is_the_reward_minus_the_mean_of_the_answers_that_count():
    found = advantages([1.0, 0.0, 0.5, 0.9], [False, False, False, True])
    assert found.values == (0.5, -0.5, 0.0, 0.0) and found.counted == (True, True, True, False)
    doubled = advantages([0.5, 0.0, 0.25], [False] * 3)
    assert doubled.values == (0.25, -0.25, 0.0)  # not divided by the deviation, which would undo the scale


@pytest.mark.parametrize(
    ("rewards", "truncated"),
    [([0.1] * 3, [False] * 3), ([1.0, 0.0], [False, True]), ([1.0, 0.0], [True, True])],
    ids=["equal", "one is left", "none is left"],
)
def test_a_group_without_a_difference_counts_in_neither_sum(rewards, truncated):
    found = advantages(rewards, truncated)
    assert not any(found.values) and not any(found.counted)


@pytest.mark.parametrize("n", [2, 3])
def test_the_expected_gradient_of_a_policy_of_two_arms_is_the_exact_one(n):
    """All groups of n answers of one token, each with its probability: the sum over a group has (n - 1) times the
    gradient of the expected reward, because each answer's own reward is part of the mean."""
    model = tiny(vocab_size=6)
    prompt = torch.tensor([[1, 3, 2]])
    rewards = [1.0, 1.0, 0.0, 1.0, 0.0, 0.0]  # two arms of three tokens each
    p = model(prompt)[0][0, -1].softmax(0)
    (p * torch.tensor(rewards)).sum().backward()
    exact = {k: v.grad.clone() for k, v in model.named_parameters() if v.grad is not None}
    factors = np.zeros(6)
    for group in itertools.product(range(6), repeat=n):
        weight = float(np.prod([p[a].item() for a in group]))
        for a, value in zip(group, advantages([rewards[a] for a in group], [False] * n).values, strict=True):
            factors[a] += weight * value
    model.zero_grad()
    tokens, targets, each = prompt.repeat(6, 1), torch.full((6, 3), -100), torch.zeros(6, 3)
    targets[:, 2], each[:, 2] = torch.arange(6), torch.tensor(factors, dtype=torch.float32)
    objective, nats = PolicyGradient(4)(model, tokens, targets, each)
    objective.backward()
    assert nats.item() == pytest.approx(-p.log().sum().item(), rel=1e-5)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(-parameter.grad, (n - 1) * exact[name], atol=1e-6, rtol=1e-4)


def test_the_gradient_of_the_divergence_is_that_of_k3(tokenizer, tmp_path):
    """At weights away from the parent; at the parent's own it is 0."""
    model = ends(tiny(), tokenizer)
    data = loader(tokenizer, tmp_path, model, kl=0.3, judge=even)
    tokens, targets, factors = data.tensors(0, True)
    plain = loader(tokenizer, tmp_path, model, kl=0.0).tensors(0, True)
    assert all(torch.equal(a, b) for a, b in zip((tokens, targets, factors), plain, strict=True))
    assert data.last.kl == 0.0
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    tokens, targets, factors = data.tensors(1, True)
    assert data.last.kl > 0
    PolicyGradient(64)(model, tokens, targets, factors)[0].backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    logp, parents = (
        m(tokens)[0].log_softmax(-1).gather(-1, targets.clamp(min=0)[..., None])[..., 0] for m in (model, data.parent)
    )
    away = parents.detach() - logp
    rewards = {i: r.advantage for i, r in enumerate(read_rollouts(rollouts_file(tmp_path, 1)))}
    each = torch.tensor([rewards[i] for i in range(len(tokens))])[:, None] * logp - 0.3 * (away.exp() - away - 1)
    (-each[targets >= 0].sum()).backward()
    for parameter, want in zip((p.grad for p in model.parameters()), got, strict=True):
        torch.testing.assert_close(parameter, want, atol=1e-5, rtol=1e-3)


# Rollouts.


def test_a_batch_is_a_function_of_the_weights_and_its_number(tokenizer, tmp_path):
    model = ends(tiny(), tokenizer)
    data = loader(tokenizer, tmp_path / "a", model)
    first = [data.tensors(n, True) for n in (0, 5, 2)]
    state = torch.get_rng_state()
    again = loader(tokenizer, tmp_path / "b", model, judge=even)
    for n, expected in ((2, first[2]), (0, first[0]), (5, first[1])):
        assert all(torch.equal(a, b) for a, b in zip(again.tensors(n, True), expected, strict=True))
        a, b = (rollouts_file(tmp_path / side, n).read_bytes() for side in "ab")
        assert a == b
    assert torch.equal(state, torch.get_rng_state()) and model.training
    one, two = (read_rollouts(rollouts_file(tmp_path / "a", n)) for n in (0, 2))
    assert len(one) == 8 and len({r.seed for r in one + two}) == 16 and len({r.ids for r in one}) > 4


def test_every_epoch_asks_each_prompt_once_and_no_batch_asks_one_twice(tokenizer, tmp_path):
    data = loader(tokenizer, tmp_path, groups=2)
    epochs = [[n for b in range(3 * e, 3 * e + 3) for n in data.numbers(b)] for e in range(3)]
    assert all(sorted(epoch) == list(range(6)) for epoch in epochs) and epochs[0] != epochs[1]
    odd = RolloutLoader(
        tiny(), tokenizer, pool(5), groups=2, samples=2, limit=4, world=ALONE, folder=tmp_path, judge=even
    )
    assert all(len(set(odd.numbers(b))) == 2 for b in range(20))


def test_the_ranks_share_a_batch(tokenizer, tmp_path):
    model = ends(tiny(), tokenizer)
    whole = loader(tokenizer, tmp_path / "whole", model).tensors(1, True)
    parts = []
    for rank in range(2):
        world = World(rank, 2, torch.device("cpu"))
        object.__setattr__(world, "gather", lambda value: [value])
        parts.append(loader(tokenizer, tmp_path / str(rank), model, world=world).tensors(1, True))
    for i, expected in enumerate(whole):
        rows = [row for part in parts for row in part[i]]
        assert len(rows) == len(expected)
        for row, want in zip(rows, expected, strict=True):
            n = min(len(row), len(want))
            assert torch.equal(row[:n], want[:n]) and (want[n:] <= 0).all()


def test_targets_are_the_answers_that_count_with_their_end(tokenizer, tmp_path):
    model = ends(tiny(), tokenizer, 1.5)
    tokens, targets, factors = loader(tokenizer, tmp_path, model).tensors(0, True)
    rollouts = read_rollouts(rollouts_file(tmp_path, 0))
    assert {r.counted for r in rollouts} == {True, False} and any(r.truncated for r in rollouts)
    for row, r in enumerate(rollouts):
        at = (targets[row] >= 0).nonzero().flatten()
        if not r.counted:
            assert not len(at) and not factors[row].any()
            continue
        begin = len(r.prompt_ids) - 1
        assert at.tolist() == list(range(begin, begin + len(r.ids))) and targets[row, at].tolist() == list(r.ids)
        assert (factors[row, at] == np.float32(r.advantage)).all()
        assert tokens[row, : begin + 1].tolist() == list(r.prompt_ids)
        assert tokens[row, begin + 1 : begin + len(r.ids)].tolist() == list(r.ids[:-1])
        assert tokenizer.is_control(r.ids[-1])


def test_impossible_batches_are_refused(tokenizer, tmp_path):
    with pytest.raises(ConfigError, match="is 7, and there are 6 prompts"):
        loader(tokenizer, tmp_path, groups=7)
    with pytest.raises(ConfigError, match="multiple of the number of processes"):
        loader(tokenizer, tmp_path, groups=3, world=World(0, 2, torch.device("cpu")))
    with pytest.raises(ConfigError, match="dropout"):
        loader(tokenizer, tmp_path, tiny(dropout=0.1))
    with pytest.raises(DataError, match="do not fit the context of 48"):
        loader(tokenizer, tmp_path, limit=46)


# Training.


def test_a_training_raises_the_reward(tokenizer, tmp_path):
    """Answers of at most two characters are right: about half of them at first."""
    data = loader(tokenizer, tmp_path, ends(tiny(), tokenizer), judge=short, groups=4, samples=8)
    trainer(data, tmp_path, steps=12, lr=0.01).fit()
    rewards = [np.mean([r.reward for r in read_rollouts(rollouts_file(tmp_path, n))]) for n in range(12)]
    assert np.mean(rewards[:2]) < 0.7 < 0.9 < np.mean(rewards[-2:])


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def test_mistake_23_groups_without_a_difference_change_no_weight(tokenizer, tmp_path, monkeypatch):
    """Neither by momentum and weight decay, nor by the divergence from a parent that is elsewhere. Counted, they do."""

    def trained(folder, judge):
        model = ends(tiny(), tokenizer)
        before = weights(model)
        data = loader(tokenizer, tmp_path / folder, model, judge=judge, kl=0.1)
        for parameter in data.parent.parameters():
            parameter.mul_(0.9)
        result = trainer(data, tmp_path / folder, weight_decay=0.1).fit()
        return result, all(torch.equal(before[k], v) for k, v in model.state_dict().items()), data.last

    result, same, seen = trained("equal", lambda prompt, text: Verdict(0.0))
    assert same and seen.dead_groups == 1.0 and seen.kl > 0
    assert [(row["loss"], row["grad_norm"]) for row in result.curve] == [(0.0, 0.0)] * 3
    assert not trained("different", even)[1]
    everything = Advantages((0.0,) * 4, (True,) * 4)
    monkeypatch.setattr(rl, "advantages", lambda rewards, truncated: everything)
    assert not trained("planted", lambda prompt, text: Verdict(0.0))[1]


def test_a_dead_group_is_not_part_of_the_count(tokenizer, tmp_path):
    """The gradient of a batch with a dead group is that of the other group alone."""
    model = ends(tiny(), tokenizer)
    live = loader(tokenizer, tmp_path).numbers(0)[0]

    def judge(prompt, text):
        return even(prompt, text) if prompt.text == f"question {live}" else Verdict(0.0)

    batch = loader(tokenizer, tmp_path, model, judge=judge).tensors(0, True)
    loss = PolicyGradient(64)
    assert loss.count(*batch) == loss.count(*(t[:4] for t in batch)) > 0
    rollouts = read_rollouts(rollouts_file(tmp_path, 0))
    assert loss.count(*batch) == sum(len(r.ids) for r in rollouts if r.counted)


def test_mistake_25_a_sampler_that_is_not_the_policy_is_noticed(tokenizer, tmp_path, monkeypatch):
    """Weights of the step before, as a cache or a prefetched batch would give."""
    model = ends(tiny(), tokenizer)
    stale = copy.deepcopy(model)
    data = loader(tokenizer, tmp_path, model)
    data.tensors(0, True)
    assert data.last.parity_max < 1e-5
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    data.tensors(1, True)
    assert data.last.parity_max < 1e-5
    monkeypatch.setattr(rl, "draw", lambda model, *rest: draw(stale, *rest))
    with pytest.raises(FoundryError, match="the sampler is not the policy"):
        data.tensors(1, True)


def test_mistake_25_every_token_is_drawn_with_its_own_probability(tokenizer):
    """No filter, no barred symbol: the log-probabilities of a cut sampler would still be those of the whole model."""
    model = tiny(vocab_size=400)
    with torch.no_grad():
        model.output.weight[:24] += 0.5  # control symbols and some more get nearly all of the probability
        model.tok_embeddings.weight += 0.5
        expected = model(torch.tensor([[1, 30]]))[0][0, -1].softmax(0)
    drawn = draw(model, tokenizer, [(1, 30)] * 4000, list(range(4000)), 1, 256)
    counts = np.bincount([d.ids[0] for d in drawn], minlength=400)
    likely = np.flatnonzero(expected.numpy() * 4000 > 5)
    assert len(likely) > 8 and any(tokenizer.is_control(int(i)) for i in likely)
    wanted = np.append(expected.numpy()[likely], 1 - expected.numpy()[likely].sum()) * 4000
    seen = np.append(counts[likely], 4000 - counts[likely].sum())
    assert scipy.stats.chisquare(seen, wanted * seen.sum() / wanted.sum()).pvalue > 1e-3
    ended = [d for d in drawn if tokenizer.is_control(d.ids[0]) or d.ids[0] == UNK_ID]
    assert all(d.text == "" and not d.truncated for d in ended)
    assert {d.ids[0] for d in drawn if d.ended} <= set(end_of_turn(tokenizer))


def test_mistake_25_a_reward_reads_the_text_up_to_the_end_and_no_further(tokenizer, tmp_path):
    """What a model would write after its end symbol cannot earn a reward; nor can an answer that ends otherwise."""
    model = ends(tiny(), tokenizer)
    seen = []

    def judge(prompt, text):
        seen.append(text)
        return Verdict(1.0)

    loader(tokenizer, tmp_path, model, judge=judge).tensors(0, True)
    rollouts = read_rollouts(rollouts_file(tmp_path, 0))
    assert seen == [r.text for r in rollouts if r.ended] and len(seen) > 0
    for r in rollouts:
        inner = r.ids if r.truncated else r.ids[:-1]
        assert "\ufffd" in r.text or r.text == tokenizer.decode(list(inner))
        assert not any(tokenizer.is_control(i) for i in inner)
        assert r.reward == float(r.ended)
