"""`/v1/completions`: texts or token ids, continued."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundry.config.serving import Serving
from foundry.inference.request import Scored
from foundry.serving.errors import invalid
from foundry.serving.forms import Form, Head, Outcome
from foundry.serving.planning import Plan, Wanted, at_most, check_characters, check_ids, plan
from foundry.serving.protocol import Choice, CompletionRequest, TextChoice
from foundry.serving.scores import TextScores
from foundry.serving.version import Version


class CompletionForm(Form[CompletionRequest]):
    """Prompts that are continued.

    The begin symbol is put before a text and is not echoed. Token ids are taken as they are, and echoed one by one.
    """

    route, prefix, kind = "/v1/completions", "cmpl-", CompletionRequest
    whole_object = part_object = "text_completion"

    def __init__(self, version: Version, asked: CompletionRequest, head: Head) -> None:
        super().__init__(version, asked, head)
        self._scores: dict[int, TextScores] = {}  # of the choices that are streamed

    @classmethod
    def plan(
        cls, version: Version, asked: CompletionRequest, sampling: dict[str, Any], config: Serving, deadline: float
    ) -> Plan:
        at_most(len(asked.prompt), config.max_prompts, "prompt", "max_prompts")
        at_most(asked.n, config.max_n, "n", "max_n")
        best = asked.best_of or asked.n
        at_most(best, config.max_n, "best_of", "max_n")
        if best < asked.n:
            raise invalid(f"best_of must be at least n ({asked.n}), got {best}", "best_of", "invalid_value")
        if asked.stream and best > asked.n:
            raise invalid("best_of cannot be streamed: the best answer is known at the end", "best_of", "invalid_value")
        check_characters([p for p in asked.prompt if isinstance(p, str)], config, "prompt")
        encode = version.tokenizer.encode
        prompts = [tuple(encode(p, bos=True)) if isinstance(p, str) else p for p in asked.prompt]
        check_ids(prompts, version, "prompt")
        wanted = Wanted(
            param="prompt",
            prompts=prompts,
            answers=best,
            max_tokens=asked.max_tokens,
            explicit="max_tokens" in asked.model_fields_set,
            max_name="max_tokens",
            stop_ids=(version.tokenizer.eos_id,),
            logprobs=0 if best > asked.n and asked.logprobs is None else asked.logprobs,
            prompt_logprobs=asked.logprobs if asked.echo else None,
        )
        return plan(version, asked, sampling, wanted, config, deadline)

    @property
    def scored(self) -> bool:
        return self.asked.logprobs is not None

    def choices(self, outcomes: Sequence[Outcome]) -> list[Choice]:
        return [self._whole(i, outcome) for i, outcome in enumerate(self._best(outcomes))]

    def opening(self, index: int, outcome: Outcome) -> Choice | None:
        if not self.asked.echo:
            return None
        return self._choice(index, outcome, self._prompt(outcome), self._prompt_scores(outcome), ended=False)

    def part(self, index: int, outcome: Outcome, text: str, tokens: Sequence[Scored]) -> Choice:
        return self._choice(index, outcome, text, tokens, ended=False)

    def ending(self, index: int, outcome: Outcome) -> Choice:
        return self._choice(index, outcome, "", (), ended=True)

    def _whole(self, index: int, outcome: Outcome) -> Choice:
        before = self._prompt(outcome) if self.asked.echo else ""
        tokens = [*(self._prompt_scores(outcome) if self.asked.echo else ()), *outcome.tokens]
        return self._choice(index, outcome, before + "".join(outcome.text), tokens, ended=True)

    def _choice(self, index: int, outcome: Outcome, text: str, tokens: Sequence[Scored], *, ended: bool) -> Choice:
        scores = None
        if self.scored and (tokens or not ended):
            if index not in self._scores:
                self._scores[index] = TextScores(self.version.texts, self.version.tokenizer)
            scores = self._scores[index].add(tokens)
        return TextChoice(
            index=index,
            text=text,
            logprobs=scores,
            finish_reason=outcome.reason if ended else None,
            stop_reason=outcome.stop_reason if ended else None,
            seed=outcome.job.seed,
        )

    def _prompt(self, outcome: Outcome) -> str:
        prompt = self.asked.prompt[outcome.job.prompt]
        return prompt if isinstance(prompt, str) else self.version.tokenizer.decode(prompt)

    def _prompt_scores(self, outcome: Outcome) -> Sequence[Scored]:
        own = isinstance(self.asked.prompt[outcome.job.prompt], str)  # the begin symbol is ours, not the client's
        return outcome.prompt[1:] if own else outcome.prompt

    def _best(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Of each prompt the `n` answers with the highest mean log-probability per token, the best one first."""
        of_prompt = self.asked.best_of or self.asked.n
        if of_prompt == self.asked.n:
            return list(outcomes)
        groups = [outcomes[i : i + of_prompt] for i in range(0, len(outcomes), of_prompt)]
        return [o for group in groups for o in sorted(group, key=_mean, reverse=True)[: self.asked.n]]


def _mean(outcome: Outcome) -> float:
    values = [token.logprob or 0.0 for token in outcome.tokens]
    return sum(values) / len(values) if values else 0.0
