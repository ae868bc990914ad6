"""Validation of reinforcement learning: greedy answers to held-out prompts, and what was forgotten of plain text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from foundry.chat.answers import Asked, answer_all
from foundry.chat.rl import Judge, verified
from foundry.chat.rollouts import Prompt
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.training.pretraining import HeldOutText
from foundry.utils.files import sha256_json


class HeldOutRewards:
    """A `training.protocols.Validator`.

    Args:
        prompts: of the validation split: rewards of prompts that were trained on say nothing about others.
        limit: tokens of an answer.
        text: pre-training text, whose `val_loss` and `val_bits_per_byte` rise by what is forgotten.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompts: Sequence[Prompt],
        limit: int,
        text: HeldOutText,
        judge: Judge = verified,
    ) -> None:
        self.tokenizer, self.prompts, self.limit, self.text, self.judge = tokenizer, list(prompts), limit, text, judge

    @property
    def identity(self) -> dict[str, Any]:
        asked = [[list(p.ids), p.verifier, dict(p.arguments)] for p in self.prompts]
        return {"prompts_sha256": sha256_json(asked), "limit": self.limit, **self.text.identity}

    def __call__(
        self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> dict[str, float]:
        """val_loss and val_bits_per_byte of the text; val_reward, val_passed (each task's, too), val_ended and
        val_length of the answers, which are greedy."""
        training = model.training
        try:
            answers = answer_all(model, self.tokenizer, [Asked(p.ids, self.limit) for p in self.prompts])
        finally:
            model.train(training)
        rewards = [self.judge(p, a.text).score if a.ended else 0.0 for p, a in zip(self.prompts, answers, strict=True)]
        passed: dict[str, list[bool]] = {}
        for prompt, reward in zip(self.prompts, rewards, strict=True):
            passed.setdefault(prompt.task, []).append(reward >= 1)
        right = [r >= 1 for r in rewards]
        return {
            **self.text(model, apply, precision, rows),
            "val_reward": sum(rewards) / len(rewards),
            "val_passed": sum(right) / len(right),
            "val_ended": sum(a.ended for a in answers) / len(answers),
            "val_length": sum(len(a.ids) + a.ended for a in answers) / len(answers),
            **{f"val_passed/{task}": sum(of) / len(of) for task, of in sorted(passed.items())},
        }
