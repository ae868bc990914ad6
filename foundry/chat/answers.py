"""Answers to many prompts at once, by the engine in the thread of the caller."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from foundry.config import FoundryError
from foundry.config.sampling import Sampling
from foundry.inference.engine import Engine, deliver
from foundry.inference.request import Delta, Event, Finished, Request
from foundry.inference.runner import Runner
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.chat import end_of_turn

GREEDY = Sampling(temperature=0.0)
SLOTS = 64  # answers that are written at the same time


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt and how long its answer may be.

    Args:
        ids: of the conversation with its begin symbol; they end where the answer begins.
        max_tokens: the end symbol included.
        seed: of the answer's random numbers, in [0, 2^63).
    """

    ids: tuple[int, ...]
    max_tokens: int
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer.

    Args:
        ids: its tokens without the symbol that ended it.
        stop: the symbol by which the model ended it: that of a turn or of the text; None if it met a limit.
    """

    ids: tuple[int, ...]
    text: str
    stop: int | None

    @property
    def ended(self) -> bool:
        """Whether the model ended it by itself."""
        return self.stop is not None


def answer_all(
    model: MiniLLM, tokenizer: Tokenizer, asked: Sequence[Asked], sampling: Sampling = GREEDY, slots: int = SLOTS
) -> list[Answered]:
    """Answers prompts, in their order; greedily by default.

    An answer is a function of its prompt, its seed and the weights. In float32 on a CPU it is the same tokens for every
    number of slots and in every company of other prompts.

    Args:
        model: on its device; it is put into evaluation mode.
        slots: answers that are computed at the same time; more need more memory.

    Raises:
        ConfigError: if a prompt leaves no room for an answer in the context.
        FoundryError: if the model fails, for example because its weights are damaged.
    """
    stop_ids = end_of_turn(tokenizer)
    requests = [Request(one.ids, sampling, one.max_tokens, one.seed, stop_ids=stop_ids) for one in asked]
    return [
        Answered(
            ids=tuple(token.id for part in parts for token in part.tokens),
            text="".join(part.text for part in parts),
            stop=end.stop if isinstance(end.stop, int) else None,
        )
        for parts, end in run_requests(model, tokenizer, requests, slots)
    ]


def run_requests(
    model: MiniLLM, tokenizer: Tokenizer, requests: Sequence[Request], slots: int = SLOTS
) -> list[tuple[list[Delta], Finished]]:
    """What the engine answers to each request, in their order; arguments and errors as for `answer_all`."""
    engine = Engine(Runner(model, max(1, min(slots, len(requests)))), tokenizer)
    events: list[list[Event]] = [[] for _ in requests]
    # Long answers first, so that the last steps are not those of a few answers.
    for i in sorted(range(len(requests)), key=lambda i: -requests[i].max_tokens):
        engine.add(engine.answer(requests[i], events[i].append))
    while not engine.idle:
        deliver(engine.step())
    return [_parts_and_end(found) for found in events]


def _parts_and_end(events: Sequence[Event]) -> tuple[list[Delta], Finished]:
    end = next(e for e in events if isinstance(e, Finished))
    if end.reason == "error":
        raise FoundryError(f"an answer failed: {end.message}")
    return [e for e in events if isinstance(e, Delta)], end
