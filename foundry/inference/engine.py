"""The engine: many requests, one model, one forward pass per step for all of them.

Requests join and leave between two steps (continuous batching, Yu et al. 2022, Orca). A step computes one token of
every answer and, up to a number of tokens, blocks of prompts that are still to be read (chunked prefill, Agrawal et al.
2023, arXiv:2308.16369), so that a long prompt delays nobody: the oldest prompt gets a block in every step, the rest
goes to those that have read least.

What a request gives is a function of the request. In float32 on a CPU, its tokens and log-probabilities are the same
bits alone and among others, streamed or not, with its prompt copied from another request or computed, with and without
speculation: rows of products do not depend on other rows, attention is computed for each request in shapes that its own
positions decide, a prompt is divided at multiples of `BLOCK` whatever else is computed, and every request has its own
random generator.

In bfloat16 the same was measured on a processor with AMX if the inputs of all matrices (`dim`, `ffn_dim`) are multiples
of 32: no bit of the logits differed in four companies of up to 32 others, for three shapes up to dim 512. On a GPU,
libraries choose a kernel by the number of rows, and the last bits follow it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from foundry.config import ConfigError, FoundryError
from foundry.inference.answer import Answer
from foundry.inference.cache import BLOCK, SharedBlocks
from foundry.inference.piece import Piece
from foundry.inference.request import Event, FinishReason, Listener, Request, Stats
from foundry.inference.runner import Runner
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import UNK_ID
from foundry.utils.log import get_logger


@dataclass(frozen=True, slots=True)
class DraftRow:
    """An answer for which tokens may be drafted.

    Args:
        slot: which identifies the answer while it runs.
        ids: its window: the prompt and what was generated.
        room: how many tokens are useful at most.
    """

    slot: int
    ids: Sequence[int]
    room: int


class Drafter(Protocol):
    """Guesses the next tokens of answers, which the model then checks in one step."""

    def propose(self, rows: Sequence[DraftRow]) -> list[list[int]]:
        """Guesses for each row, at most `room` tokens; none is a guess, too."""
        ...


@dataclass(frozen=True)
class _Part:
    """A piece of a step, and the answer it belongs to."""

    answer: Answer
    piece: Piece


def deliver(events: Iterable[tuple[Answer, Event]]) -> None:
    """Calls the listeners.

    One that raises is reported in the log, and its request is cancelled.
    """
    for answer, event in events:
        try:
            answer.listener(event)
        except Exception:
            get_logger().exception("a listener of the engine failed; its request is cancelled")
            answer.cancel()


class Engine:
    """Answers requests step by step, in the thread that calls `step`. It is not safe for several threads.

    Args:
        runner: the model with its slots.
        tokenizer: of the same vocabulary.
        step_tokens: tokens of prompts that are read in one step at most, at least one block.
        shared_tokens: tokens of prompts that are kept for requests that begin in the same way; None: half of what the
            slots have room for.
        drafter: guesses tokens for speculative decoding.

    Raises:
        ConfigError: (a `ValueError`) if model and tokenizer have different vocabularies.
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        step_tokens: int = 256,
        shared_tokens: int | None = None,
        drafter: Drafter | None = None,
    ) -> None:
        cfg = runner.cfg
        if cfg.vocab_size != tokenizer.vocab_size:
            raise ConfigError(
                f"the model has {cfg.vocab_size} tokens, the tokenizer {tokenizer.vocab_size}: "
                "give the tokenizer that the model was trained with"
            )
        self.runner, self.tokenizer, self.drafter = runner, tokenizer, drafter
        self.context, self._step_tokens = cfg.max_seq_len, max(step_tokens, BLOCK)
        # Byte fallback makes the unknown token unnecessary.
        self.barred = [i for i in range(cfg.vocab_size) if i == UNK_ID or tokenizer.is_control(i)]
        slots = runner.cache.slots
        self._shared = SharedBlocks(slots * self.context // 2 if shared_tokens is None else shared_tokens)
        self._waiting: deque[Answer] = deque()
        self._running: list[Answer] = []  # in the order of their arrival
        self._free = list(range(slots - 1, -1, -1))
        self._prompt_tokens = self._cached_tokens = self._completion_tokens = self._drafted = self._accepted = 0

    @property
    def idle(self) -> bool:
        return not (self._waiting or self._running)

    @property
    def waiting(self) -> int:
        """Answers that wait for a slot."""
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Slots that no answer has."""
        return len(self._free)

    def check(self, request: Request) -> None:
        """Refuses a request that this model cannot answer. Callable from any thread.

        Raises:
            ConfigError: (a `ValueError`) for a prompt that does not fit the context, or an id outside the vocabulary.
        """
        fits = self.context - 1 if request.max_tokens else self.context
        if len(request.ids) > fits:
            raise ConfigError(
                f"the prompt has {len(request.ids)} tokens with its begin symbol; at most {fits} "
                f"fit the context of {self.context} together with a new token: shorten the prompt"
            )
        size = self.runner.cfg.vocab_size
        if wrong := [i for i in (*request.ids, *request.stop_ids) if not 0 <= i < size]:
            raise ConfigError(f"token ids must be in [0, {size}), got {wrong[0]}")

    def answer(self, request: Request, listener: Listener) -> Answer:
        """The state of a request that has not been added yet. Callable from any thread.

        Raises:
            ConfigError: as `check`, and for a sampling parameter that does not fit the vocabulary.
        """
        self.check(request)
        size = self.runner.cfg.vocab_size
        return Answer(request, listener, self.tokenizer, vocab_size=size, barred=self.barred, context=self.context)

    def add(self, answer: Answer) -> None:
        """Puts an answer into the queue."""
        if self.idle and self.runner.stale():
            self.runner.refresh()
            self._shared.clear()
        self._waiting.append(answer)

    @torch.inference_mode()
    def step(self) -> list[tuple[Answer, Event]]:
        """Computes one step; returns the events of the answers in their order."""
        events = self.sweep()
        while self._waiting and self._free:
            answer = self._waiting.popleft()
            answer.slot = self._free.pop()
            self.runner.begin(answer.slot)
            self._running.append(answer)
        parts = self._plan()
        if parts:
            try:
                logits = self.runner.forward([p.piece for p in parts])
                # The parameters of sampling are applied on the CPU, to rows in float32.
                logits = logits.float().cpu()
            except Exception as e:
                get_logger().exception("a step of the engine failed: %d requests end with an error", len(parts))
                for part in parts:
                    part.answer.finish("error", message=f"the model failed: {type(e).__name__}: {e}"[:500])
            else:
                self._share(parts)
                at = 0
                for part in parts:
                    n = part.piece.wanted
                    self._take(part, logits[at : at + n], events)
                    at += n
        self._leave(events)
        return events

    def cancel_all(self) -> None:
        for answer in (*self._waiting, *self._running):
            answer.cancel()

    def fail_all(self, message: str) -> list[tuple[Answer, Event]]:
        """Ends every answer with an error."""
        events = []
        for answer in (*self._waiting, *self._running):
            events.append((answer, answer.finish("error", message=message)))
        self._waiting.clear()
        self._running.clear()
        self._free = list(range(self.runner.cache.slots - 1, -1, -1))
        return events

    def stats(self) -> Stats:
        running = list(self._running)  # which the engine's thread may change meanwhile
        return Stats(
            running=len(running),
            waiting=len(self._waiting),
            slots=self.runner.cache.slots,
            cache_tokens=sum(a.read for a in running) + BLOCK * len(self._shared),
            cache_size=self.context * self.runner.cache.slots + BLOCK * self._shared.capacity,
            prompt_tokens=self._prompt_tokens,
            cached_tokens=self._cached_tokens,
            completion_tokens=self._completion_tokens,
            drafted=self._drafted,
            accepted=self._accepted,
        )

    def sweep(self) -> list[tuple[Answer, Event]]:
        """Ends what was cancelled or is late, in the queue and in the batch; `step` does it, too."""
        events: list[tuple[Answer, Event]] = []
        now = time.monotonic()

        def reason(answer: Answer) -> FinishReason | None:
            if answer.cancelled:
                return "cancelled"
            deadline = answer.request.deadline
            return "timeout" if deadline is not None and now >= deadline else None

        for answer in (*self._waiting, *self._running):
            if why := reason(answer):
                if why == "timeout" and (rest := answer.rest()):
                    events.append((answer, rest))
                answer.finish(why)
        for answer in self._waiting:
            if answer.end:
                events.append((answer, answer.end))
        self._waiting = deque(a for a in self._waiting if not a.end)
        self._leave(events)
        return events

    def _leave(self, events: list[tuple[Answer, Event]]) -> None:
        for answer in self._running:
            if answer.end:
                events.append((answer, answer.end))
                self._free.append(answer.slot)
                self._free.sort(reverse=True)  # the lowest slot is given next
                self._completion_tokens += answer.end.completion_tokens
                self._drafted += answer.end.drafted
                self._accepted += answer.end.accepted
        self._running = [a for a in self._running if not a.end]

    def _plan(self) -> list[_Part]:
        """What is computed in this step."""
        for answer in self._running:
            if answer.full:
                answer.slide()
        writing = [a for a in self._running if not a.reading]
        parts = [
            _Part(a, Piece(a.slot, a.read, (a.window[-1], *drafts), prompt=False, wanted=1 + len(drafts)))
            for a, drafts in zip(writing, self._drafts(writing), strict=True)
        ]
        parts += self._prompts([a for a in self._running if a.reading])
        return parts

    def _drafts(self, answers: list[Answer]) -> Iterable[Sequence[int]]:
        if self.drafter is None or not answers:
            return [()] * len(answers)
        return self.drafter.propose([DraftRow(a.slot, a.window, a.room - 1) for a in answers])

    def _prompts(self, answers: list[Answer]) -> list[_Part]:
        """The blocks of prompts that are read in this step.

        A block that is the same as one of another answer in this step is computed once, and copied in the next step.
        """
        ends = {id(a): self._reuse(a) for a in answers}
        claimed: set[tuple[int, ...]] = set()
        budget = self._step_tokens
        growing = list(answers)
        while growing and budget > 0:
            chosen = growing[0] if budget == self._step_tokens else min(growing, key=lambda a: ends[id(a)])
            begin = ends[id(chosen)]
            end = min(begin + BLOCK, chosen.prompt_end)
            if chosen.sharing and end < chosen.prompt_end:
                beginning = tuple(chosen.window[:end])
                if beginning in claimed:
                    growing.remove(chosen)
                    continue
                claimed.add(beginning)
            ends[id(chosen)] = end
            budget -= end - begin
            if end == chosen.prompt_end:
                growing.remove(chosen)
        parts = []
        for a in answers:
            end = ends[id(a)]
            if end > a.read:
                wanted = end - a.read if a.scoring else int(end == a.prompt_end)
                parts.append(_Part(a, Piece(a.slot, a.read, a.window[a.read : end], prompt=True, wanted=wanted)))
        return parts

    def _reuse(self, answer: Answer) -> int:
        """Copies what others have read of the same prompt; returns the position from where on it is computed."""
        while answer.sharing and answer.read + BLOCK < answer.prompt_end:
            found = self._shared.find(answer.shared, answer.window[answer.read : answer.read + BLOCK])
            if found is None:
                break
            self.runner.cache.block(answer.slot, answer.read).copy_(found.kv)
            answer.shared = found
            answer.read += BLOCK
            answer.cached += BLOCK
            self._cached_tokens += BLOCK
        return answer.read

    def _share(self, parts: list[_Part]) -> None:
        """Keeps the blocks of prompts that were computed in this step."""
        for part in parts:
            answer, end = part.answer, part.piece.start + len(part.piece.ids)
            if not part.piece.prompt:
                continue
            self._prompt_tokens += len(part.piece.ids)
            while answer.read < end:
                ids = answer.window[answer.read : min(answer.read + BLOCK, end)]
                if answer.sharing and len(ids) == BLOCK:
                    kv = self.runner.cache.block(answer.slot, answer.read)
                    answer.shared = self._shared.put(answer.shared, ids, kv)
                    answer.sharing = answer.shared is not None
                answer.read += len(ids)

    def _take(self, part: _Part, logits: torch.Tensor, events: list[tuple[Answer, Event]]) -> None:
        answer, piece = part.answer, part.piece
        try:
            if piece.prompt and answer.scoring:
                if scores := answer.score_prompt(logits, piece.start):
                    events.append((answer, scores))
                logits = logits[-1:]
            if answer.reading:
                return
            if not answer.request.max_tokens:
                answer.finish("length")
                return
            if delta := answer.take(logits, piece.ids[1:] if not piece.prompt else ()):
                events.append((answer, delta))
        except FoundryError as e:
            answer.finish("error", message=str(e))
        except Exception as e:  # a mistake of ours that one request meets must not end the others
            get_logger().exception("an answer of the engine failed")
            answer.finish("error", message=f"the answer failed: {type(e).__name__}: {e}"[:500])
