"""`/v1/chat/completions`: a conversation, answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from foundry.config.serving import Serving
from foundry.inference.request import Scored
from foundry.serving.errors import invalid
from foundry.serving.forms import Form, Outcome
from foundry.serving.planning import Plan, Wanted, at_most, check_characters, plan
from foundry.serving.protocol import ChatAnswer, ChatChoice, ChatDelta, ChatMessage, ChatRequest, Choice, ChunkChoice
from foundry.serving.scores import chat_scores
from foundry.serving.version import Version
from foundry.tokenizers.chat import Message, encode_chat, end_of_turn
from foundry.tokenizers.history import fit_chat, room_for_answer


def messages_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """The turns for the encoder; `developer` is OpenAI's newer name of `system`."""
    return [Message("system" if m.role == "developer" else m.role, m.content) for m in messages]


def _encoded(
    version: Version, asked: ChatRequest, messages: Sequence[Message], config: Serving, tokens: int | None
) -> tuple[list[int], int | None]:
    """Ids of the conversation, and how many messages `truncation` left out; None if it is disabled."""
    how = {"answer": not asked.continue_final_message, "open_last": asked.continue_final_message}
    if asked.truncation == "disabled":
        return encode_chat(version.tokenizer, messages, **how), None
    context = version.facts.context_length
    room = room_for_answer(context, config.max_new_tokens) if tokens is None else tokens
    if config.max_prompt_tokens:
        context = min(context, config.max_prompt_tokens + room)
    return fit_chat(version.tokenizer, messages, context, room, **how)


class ChatForm(Form[ChatRequest]):
    """A conversation that is answered, or whose last message is continued."""

    route, prefix, kind = "/v1/chat/completions", "chatcmpl-", ChatRequest
    whole_object, part_object = "chat.completion", "chat.completion.chunk"

    @classmethod
    def plan(
        cls, version: Version, asked: ChatRequest, sampling: dict[str, Any], config: Serving, deadline: float
    ) -> Plan:
        if asked.top_logprobs is not None and not asked.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        at_most(asked.top_logprobs or 0, config.max_logprobs, "top_logprobs", "max_logprobs")
        given = (asked.max_completion_tokens, asked.max_tokens)
        if None not in given and given[0] != given[1]:
            raise invalid(
                "max_tokens and max_completion_tokens differ: give only max_completion_tokens",
                "max_tokens",
                "invalid_value",
            )
        tokens = next((value for value in given if value is not None), None)
        messages = messages_of(asked.messages)
        check_characters([m.content for m in messages], config, "messages")
        ids, dropped = _encoded(version, asked, messages, config, tokens)
        wanted = Wanted(
            param="messages",
            prompts=[tuple(ids)],
            dropped=dropped,
            answers=asked.n,
            max_tokens=tokens,
            explicit=tokens is not None,
            max_name="max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens",
            stop_ids=end_of_turn(version.tokenizer),
            logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
        )
        return plan(version, asked, sampling, wanted, config, deadline)

    @property
    def scored(self) -> bool:
        return self.asked.logprobs

    def choices(self, outcomes: Sequence[Outcome]) -> list[Choice]:
        return [
            ChatChoice(
                index=i,
                message=ChatAnswer(content="".join(outcome.text)),
                logprobs=chat_scores(self.version.texts, outcome.tokens) if self.scored else None,
                finish_reason=outcome.reason,
                stop_reason=outcome.stop_reason,
                seed=outcome.job.seed,
            )
            for i, outcome in enumerate(outcomes)
        ]

    def opening(self, index: int, outcome: Outcome) -> Choice | None:
        return self._chunk(index, outcome, ChatDelta(role="assistant", content=""), (), ended=False)

    def part(self, index: int, outcome: Outcome, text: str, tokens: Sequence[Scored]) -> Choice:
        return self._chunk(index, outcome, ChatDelta(content=text), tokens, ended=False)

    def ending(self, index: int, outcome: Outcome) -> Choice:
        return self._chunk(index, outcome, ChatDelta(), (), ended=True)

    def _chunk(
        self, index: int, outcome: Outcome, delta: ChatDelta, tokens: Sequence[Scored], *, ended: bool
    ) -> Choice:
        return ChunkChoice(
            index=index,
            delta=delta,
            logprobs=chat_scores(self.version.texts, tokens) if tokens and self.scored else None,
            finish_reason=outcome.reason if ended else None,
            stop_reason=outcome.stop_reason if ended else None,
            seed=outcome.job.seed,
        )
