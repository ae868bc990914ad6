"""Reinforcement learning with rewards of programs: the group-relative policy gradient, as a loader and a loss.

A step draws a group of answers to each of its prompts from the weights as they are, and rewards them. The gradient is
that of the sum over tokens of A log p, divided by the number of these tokens, where A is the reward of the answer minus
the mean reward of its group: the advantage of GRPO (Shao et al. 2024, arXiv:2402.03300) without its division by the
deviation, which weighs easy and hard prompts more than others (Dr. GRPO, Liu et al. 2025, arXiv:2503.20783). Each batch
is used once, so the ratio of new to old policy is 1 and needs no clipping.

Left out of the sum and of its count are groups whose rewards are all equal, which have no gradient, and answers that
met the limit of tokens, of which nobody knows how they would have ended. A step without any other answer changes no
weight.

The term of the divergence from the parent (k3, Schulman 2020, http://joschu.net/blog/kl-approx.html) has the gradient
(1 - p_parent / p) of each token's log p, so it is a part of that token's factor, and one weighted cross-entropy is the
whole loss.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from foundry.chat.rollout_statistics import Statistics, statistics
from foundry.chat.rollouts import Drawn, Prompt, Rollout, draw, rollout_seed, write_rollouts
from foundry.chat.verifiers import VERIFIER_VERSION, Verdict, verify
from foundry.config import ConfigError, DataError, FoundryError
from foundry.data.tokens.order import permute
from foundry.models import MiniLLM
from foundry.models.adapter import merged
from foundry.models.scoring import in_cache
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import TEMPLATE_SHA256
from foundry.utils.distributed import World
from foundry.utils.files import sha256_json
from foundry.utils.splitmix import key
from foundry.utils.targets import IGNORE

# Largest mean difference of a step between the log-probabilities of sampler and trainer, in nats. In float32 both
# compute the same but for the order of sums; other formats round each product.
PARITY = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.1}
KL_LIMIT = 10.0  # exponents beyond it are of tokens that the parent would next to never write

Judge = Callable[[Prompt, str], Verdict]


def verified(prompt: Prompt, text: str) -> Verdict:
    """The verdict of the prompt's own verifier."""
    return verify(prompt.verifier, prompt.arguments, text)


@dataclass(frozen=True)
class Advantages:
    """Of the answers of a group.

    Attributes:
        values: reward minus the mean of the answers that are not truncated; 0 for those that do not count.
        counted: which answers the step learns from.
    """

    values: tuple[float, ...]
    counted: tuple[bool, ...]


def advantages(rewards: Sequence[float], truncated: Sequence[bool]) -> Advantages:
    """The advantages of one group's answers; see the module for what does not count."""
    kept = [r for r, cut in zip(rewards, truncated, strict=True) if not cut]
    if not kept or min(kept) == max(kept):
        return Advantages((0.0,) * len(rewards), (False,) * len(rewards))
    mean = sum(kept) / len(kept)
    return Advantages(
        tuple(0.0 if cut else r - mean for r, cut in zip(rewards, truncated, strict=True)),
        tuple(not cut for cut in truncated),
    )


class PolicyGradient:
    """The loss of a `RolloutLoader`'s batches: minus the sum over counted tokens of (factor x log p).

    What is reported is the cross-entropy of these tokens, an estimate of the policy's entropy in nats per token.

    Args:
        chunk: positions whose logits exist at a time.
    """

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk

    @property
    def identity(self) -> dict[str, Any]:
        return {"name": "group-relative policy gradient"}

    def count(self, tokens: Tensor, targets: Tensor, factors: Tensor) -> Tensor:
        return (targets >= 0).sum()

    def __call__(self, model: MiniLLM, tokens: Tensor, targets: Tensor, factors: Tensor) -> tuple[Tensor, Tensor]:
        return model.summed_loss(tokens, targets, chunk=self.chunk, weights=factors)


class RolloutLoader:
    """Batches of rollouts; see `training.protocols.Loader`.

    A batch is a function of (weights, seed, number). It has one answer per row, after its prompt.

    Args:
        model: the one that is trained. Its weights at this moment are those of the parent.
        prompts: the pool; an epoch asks each at most once, in the order of its own bijection.
        groups: prompts of a batch, over all processes.
        samples: answers to each.
        limit: tokens of an answer.
        kl: weight of the divergence from the parent; 0: it is only measured.
        precision: of the trainer's products.
        world: this process among its peers; every process has all weights.
        folder: where the rollouts of each batch are written; None: nowhere.
        judge: rewards an answer by its text up to the end; an answer that another control symbol ended, or that met
            the limit, has the reward 0.
        programs: hash of the judge's code, unless it is Foundry's own.

    Attributes:
        last: the statistics of the batch that was made last.
        parent: the model as it was in the beginning.

    Raises:
        ConfigError: for a batch that does not fit the processes or the pool, or a model with dropout, whose trainer is
            another policy than its sampler.
        DataError: if a prompt and its answer do not fit the context.
    """

    follows_weights = True
    widths_vary = True
    packing = "document"

    def __init__(
        self,
        model: MiniLLM,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        *,
        groups: int,
        samples: int,
        limit: int,
        kl: float = 0.0,
        seed: int = 1,
        precision: torch.dtype = torch.float32,
        world: World,
        folder: Path | None = None,
        judge: Judge = verified,
        programs: str = "",
    ) -> None:
        if groups % world.size:
            raise ConfigError(f"rl.prompts ({groups}) must be a multiple of the number of processes ({world.size})")
        if groups > len(prompts):
            raise ConfigError(f"rl.prompts is {groups}, and there are {len(prompts)} prompts: lower it or add tasks")
        if model.cfg.dropout:
            raise ConfigError(
                f"model.dropout is {model.cfg.dropout}: RL needs 0, as its sampler and trainer must agree"
            )
        longest = max(len(p.ids) for p in prompts) + limit
        if longest > model.cfg.max_seq_len:
            raise DataError(
                f"a prompt of {longest - limit} tokens and an answer of {limit} do not fit the context of "
                f"{model.cfg.max_seq_len}: lower rl.max_new_tokens or leave out long prompts"
            )
        self.model, self.tokenizer, self.prompts = model, tokenizer, list(prompts)
        self.groups, self.samples, self.limit, self.kl = groups, samples, limit, kl
        self.seed, self.precision, self.world, self.folder, self.judge = seed, precision, world, folder, judge
        self.programs = programs
        self.batch_size, self.seq_len = groups * samples, longest
        self._per_epoch = len(prompts) // groups
        self.tokens_per_epoch = self._per_epoch * self.batch_size * self.seq_len
        self.parent = copy.deepcopy(_plain(model)).eval().requires_grad_(False)
        self.last: Statistics | None = None

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size

    @property
    def identity(self) -> dict[str, str]:
        """The hashes of the prompts, of the tokenizer and of the template, and how the answers are drawn."""
        pool = [[list(p.ids), p.verifier, dict(p.arguments)] for p in self.prompts]
        drawn = {"groups": self.groups, "samples": self.samples, "limit": self.limit, "kl": self.kl}
        return {
            "index_sha256": sha256_json(pool),
            "tokenizer_sha256": self.tokenizer.sha256,
            "template_sha256": TEMPLATE_SHA256,
            "verifier_version": f"{VERIFIER_VERSION} {self.programs}".strip(),
            **{f"rollouts.{k}": str(v) for k, v in drawn.items()},
        }

    @property
    def bytes_per_token(self) -> float:
        """Of the prompts' last turns, markers and roles aside."""
        texts = [p.text for p in self.prompts[:256]]
        tokens = sum(len(self.tokenizer.encode(text)) for text in texts)
        return max(1, sum(len(text.encode()) for text in texts)) / max(1, tokens)

    def numbers(self, batch: int) -> list[int]:
        """The prompts of a batch, by their numbers in the pool: all of them, of which none occurs twice."""
        epoch, place = divmod(batch, self._per_epoch)
        at = np.arange(place * self.groups, (place + 1) * self.groups)
        return [int(n) for n in permute(at, len(self.prompts), key(self.seed, epoch))]

    def tensors(self, number: int, documents: bool) -> tuple[Tensor, Tensor, Tensor]:
        """(tokens, targets, factors) of this process's groups; the rows are as wide as the longest of them.

        Raises:
            FoundryError: if the log-probabilities of sampler and trainer differ by more than rounding does.
        """
        rollouts = self._rewarded(number)
        tokens, targets = _rows(rollouts)
        mine = _of_answers(self._log_probabilities(self.model, tokens, targets), rollouts)
        parents = _of_answers(self._log_probabilities(self.parent, tokens, targets), rollouts)
        rollouts = [
            replace(r, trainer_logprobs=m, parent_logprobs=p) for r, m, p in zip(rollouts, mine, parents, strict=True)
        ]
        every = [r for part in self.world.gather(rollouts) for r in part]
        self.last = statistics(every)
        if self.world.main and self.folder is not None:
            write_rollouts(rollouts_file(self.folder, number), every)
        self._check_parity(number, self.last)
        factors = torch.zeros(tokens.shape)
        for row, r in enumerate(rollouts):
            begin = len(r.prompt_ids) - 1
            if not r.counted:
                targets[row] = IGNORE
                continue
            factors[row, begin : begin + len(r.ids)] = torch.tensor(self._factors(r))
        return tokens, targets, factors

    def describe(self, number: int) -> str:
        return f"it drew answers to the prompts {', '.join(map(str, self.numbers(number)))}"

    def _rewarded(self, batch: int) -> list[Rollout]:
        """This process's answers with their rewards and advantages, group after group."""
        share = self.groups // self.world.size
        numbers = self.numbers(batch)[self.world.rank * share : (self.world.rank + 1) * share]
        seeds = [rollout_seed(self.seed, batch, n, s) for n in numbers for s in range(self.samples)]
        asked = [self.prompts[n].ids for n in numbers for _ in range(self.samples)]
        drawn = draw(_plain(self.model), self.tokenizer, asked, seeds, self.limit)
        rollouts: list[Rollout] = []
        for i, n in enumerate(numbers):
            at = slice(i * self.samples, (i + 1) * self.samples)
            rollouts += judged(batch, n, self.prompts[n], drawn[at], seeds[at], self.judge)
        return rollouts

    def _factors(self, rollout: Rollout) -> list[float]:
        """Of each token's log-probability in what is maximised."""
        if not self.kl:
            return [rollout.advantage] * len(rollout.ids)
        away = np.subtract(rollout.parent_logprobs, rollout.trainer_logprobs)
        return [float(x) for x in rollout.advantage - self.kl * (1 - np.exp(np.minimum(away, KL_LIMIT)))]

    @torch.no_grad()
    def _log_probabilities(self, model: MiniLLM, tokens: Tensor, targets: Tensor) -> Tensor:
        """Of each target under the model, float32 (B, T) on the CPU; 0 where there is none."""
        device = self.model.tok_embeddings.weight.device
        with torch.autocast(device.type, self.precision, enabled=self.precision != torch.float32):
            parts = [model.nats(x, y, chunk=1024) for x, y in in_cache(tokens.to(device), targets.to(device))]
        return -torch.cat(parts).float().cpu()

    def _check_parity(self, batch: int, seen: Statistics) -> None:
        if not seen.parity <= PARITY[self.precision]:
            raise FoundryError(
                f"batch {batch}: the log-probabilities of sampler and trainer differ by {seen.parity:.2e} nats on "
                f"average ({seen.parity_max:.2e} at most), and only {PARITY[self.precision]:g} can be rounding: the "
                "sampler is not the policy, and its gradient would be wrong. Please report this"
            )


def _plain(model: MiniLLM) -> MiniLLM:
    """The model with its adapter merged: otherwise every token would compute the merged weights again."""
    return model if model.adapter is None else merged(model).to(model.tok_embeddings.weight.device)


def judged(
    batch: int, number: int, prompt: Prompt, drawn: Sequence[Drawn], seeds: Sequence[int], judge: Judge = verified
) -> list[Rollout]:
    """The answers of one group with their rewards and advantages; the log-probabilities are those of the sampler."""
    verdicts = [judge(prompt, d.text) if d.ended else Verdict(0.0) for d in drawn]
    found = advantages([v.score for v in verdicts], [d.truncated for d in drawn])
    return [
        Rollout(
            batch=batch,
            prompt=number,
            sample=i,
            task=prompt.task,
            doc_id=prompt.doc_id,
            question=prompt.text,
            prompt_ids=prompt.ids,
            text=d.text,
            ids=d.ids,
            seed=seeds[i],
            ended=d.ended,
            truncated=d.truncated,
            reward=verdicts[i].score,
            parts=dict(verdicts[i].parts),
            advantage=found.values[i],
            counted=found.counted[i],
            logprobs=d.logprobs,
            trainer_logprobs=(),
            parent_logprobs=(),
        )
        for i, d in enumerate(drawn)
    ]


def rollouts_file(folder: Path, batch: int) -> Path:
    """Where a run keeps the rollouts of a batch."""
    return folder / f"batch-{batch:06d}.parquet"


def _rows(rollouts: Sequence[Rollout]) -> tuple[Tensor, Tensor]:
    """(tokens, targets) with one answer per row; every token of an answer is a target."""
    width = max(len(r.prompt_ids) + len(r.ids) for r in rollouts) - 1
    tokens = torch.zeros(len(rollouts), width, dtype=torch.int64)
    targets = torch.full((len(rollouts), width), IGNORE)
    for row, r in enumerate(rollouts):
        ids, n = torch.tensor([*r.prompt_ids, *r.ids]), len(r.prompt_ids)
        tokens[row, : len(ids) - 1] = ids[:-1]
        targets[row, n - 1 : len(ids) - 1] = ids[n:]
    return tokens, targets


def _of_answers(values: Tensor, rollouts: Sequence[Rollout]) -> list[tuple[float, ...]]:
    """The values (B, T) at the tokens of each answer."""
    starts = [len(r.prompt_ids) - 1 for r in rollouts]
    return [
        tuple(values[row, n : n + len(r.ids)].tolist()) for row, (n, r) in enumerate(zip(starts, rollouts, strict=True))
    ]
