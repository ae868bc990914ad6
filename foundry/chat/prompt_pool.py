"""The prompts that reinforcement learning asks: those of examples whose answers a program can check."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from foundry.chat.example import Example
from foundry.chat.rollouts import Prompt, make_prompt
from foundry.config import ConfigError
from foundry.tokenizers import Tokenizer


@dataclass(frozen=True)
class PromptPool:
    """Prompts, and where the other examples went.

    Attributes:
        prompts: in the order of the examples, each once.
        unverified: examples without a verifier; other_tasks: of tasks that were not asked for.
        repeated: of a prompt that is in the pool already; too_long: whose prompt leaves no room for an answer.
    """

    prompts: tuple[Prompt, ...]
    unverified: int
    other_tasks: int
    repeated: int
    too_long: int

    def line(self) -> str:
        """The account of all examples, for the log."""
        tasks = Counter(p.task for p in self.prompts)
        of = ", ".join(f"{name} {n:,}" for name, n in tasks.most_common())
        return (
            f"{len(self.prompts):,} prompts ({of}); left out: {self.other_tasks:,} of other tasks, "
            f"{self.unverified:,} without a verifier, {self.repeated:,} repeated, {self.too_long:,} too long"
        )


def prompt_pool(
    tokenizer: Tokenizer, examples: Iterable[Example], tasks: Sequence[str], limit: int, context: int
) -> PromptPool:
    """Chooses the prompts.

    Args:
        tasks: whose prompts are taken; empty: all.
        limit: tokens of an answer.
        context: tokens of prompt and answer together.

    Raises:
        ConfigError: for a task without a prompt, and if no prompt is left.
    """
    counts: Counter[str] = Counter()
    found: dict[tuple[int, ...], Prompt] = {}
    seen: set[str] = set()
    for example in examples:
        if tasks and example.task not in tasks:
            counts["other_tasks"] += 1
            continue
        if example.verifier is None:
            counts["unverified"] += 1
            continue
        seen.add(example.task)
        prompt = make_prompt(tokenizer, example)
        if len(prompt.ids) + limit > context:
            counts["too_long"] += 1
        elif prompt.ids in found:
            counts["repeated"] += 1
        else:
            found[prompt.ids] = prompt
    if unknown := sorted(set(tasks) - seen):
        raise ConfigError(
            f"rl.tasks names {', '.join(unknown)}, of which there is no example with a verifier: "
            "reports/chat.html lists the tasks"
        )
    if not found:
        raise ConfigError(
            f"no example with a verifier fits the context of {context} with an answer of {limit} tokens "
            f"({counts['too_long']} are too long): lower rl.max_new_tokens, or add examples"
        )
    return PromptPool(
        tuple(found.values()), counts["unverified"], counts["other_tasks"], counts["repeated"], counts["too_long"]
    )


def evenly(prompts: Sequence[Prompt], most: int) -> list[Prompt]:
    """At most so many prompts, evenly from all tasks and within each."""
    tasks: dict[str, list[Prompt]] = {}
    for prompt in prompts:
        tasks.setdefault(prompt.task, []).append(prompt)
    share = max(1, most // len(tasks))
    chosen = [[of[i * len(of) // min(share, len(of))] for i in range(min(share, len(of)))] for of in tasks.values()]
    return [p for of in chosen for p in of][:most]
