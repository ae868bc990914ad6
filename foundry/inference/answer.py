"""One request on its way through the engine: its text so far, what of it is in the cache, and why it ended."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from foundry.inference.cache import SharedBlock
from foundry.inference.request import MAX_SEED, Delta, Finished, FinishReason, Listener, PromptScores, Request, Scored
from foundry.inference.sampling import Sampler, log_probabilities
from foundry.inference.text import AnswerText
from foundry.tokenizers import Tokenizer


class Answer:
    """The answer to a request; the engine's `Ticket`.

    Args:
        barred: tokens that are never generated, unless they are stop ids of the request.
        context: tokens that fit a slot.

    Attributes:
        window: the tokens that the model regards: the prompt and what was generated; after a full context, its end.
        prompt_end: how many tokens of the window are read as a prompt, in blocks.
        read: how many tokens of the window are in the cache.
        slot: of the cache, while the request is running.
        shared: the last block that was read and is shared with other requests; None before the first one.
        scoring: whether logits of the prompt are still needed for its scores.
        sharing: whether the blocks up to here are shared, so that the next one can be.
        cached: tokens of the prompt that were copied from other requests.
        cancelled: set by `cancel`; the engine ends the request at its next step.
        end: how the answer ended; None while it has not.
    """

    def __init__(
        self,
        request: Request,
        listener: Listener,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        barred: Sequence[int],
        context: int,
    ) -> None:
        self.request, self.listener, self._context = request, listener, context
        generator = torch.Generator()
        # 63 bits, so that a drawn seed can be given with the request that repeats it.
        self._seed = generator.seed() % MAX_SEED if request.seed is None else int(request.seed)
        generator.manual_seed(self._seed)
        self._stop_ids = frozenset(request.stop_ids)
        self._sampler = Sampler(
            request.sampling,
            request.ids,
            vocab_size=vocab_size,
            generator=generator,
            end_ids=request.stop_ids,
            barred=[i for i in barred if i not in self._stop_ids],
            matcher=request.constraint.start() if request.constraint else None,
        )
        self._text = AnswerText(tokenizer, request.stop)
        self._prompt_scores: list[Scored] = []
        self._completion = self._drafted = self._accepted = 0
        self.window = list(request.ids)
        self.prompt_end, self.read = len(request.ids), 0
        self.slot: int | None = None
        self.shared: SharedBlock | None = None
        self.scoring = request.prompt_logprobs is not None
        self.sharing = not self.scoring  # what is copied has no logits
        self.cached = 0
        self.cancelled = False
        self.end: Finished | None = None

    @property
    def seed(self) -> int:
        return self._seed

    def cancel(self) -> None:
        self.cancelled = True

    @property
    def reading(self) -> bool:
        """Whether the prompt, or the half of a full context, has not been read to its end."""
        return self.read < self.prompt_end

    @property
    def full(self) -> bool:
        """Whether the last token of the window does not fit the context."""
        return len(self.window) > self._context

    @property
    def room(self) -> int:
        """Tokens that the answer may still get before `max_tokens` or a full context ends it or has it slide."""
        return min(self.request.max_tokens - self._completion, self._context + 1 - len(self.window))

    def slide(self) -> None:
        """Drops the older half of a full context, so that the newer one is read again."""
        self.window = self.window[-(self._context // 2) :]
        self.prompt_end, self.read = len(self.window), 0
        self.shared, self.sharing = None, False

    def score_prompt(self, logits: Tensor, start: int) -> PromptScores | None:
        """Takes the logits (n, V) of tokens of the prompt from a position on; all scores when it was the last part."""
        top, ids = self.request.prompt_logprobs, self.request.ids
        if not start:
            self._prompt_scores.append(Scored(ids[0]))
        for row, token in zip(logits, ids[start + 1 :], strict=False):
            self._prompt_scores.append(Scored(token, *log_probabilities(row, token, top)))
        if len(self._prompt_scores) < len(ids):
            return None
        self.scoring = False
        return PromptScores(tuple(self._prompt_scores))

    def take(self, logits: Tensor, drafts: Sequence[int] = ()) -> Delta | None:
        """Chooses the next tokens.

        Every token is chosen as if there were no drafts, with the random numbers of the request; a draft only saves
        the step of a token that is equal to it.

        Args:
            logits: (n, V) after the last token of the window and after each draft.

        Raises:
            FoundryError: if the logits are not numbers, or no token is allowed.
        """
        request = self.request
        scored, pieces = [], []
        self._drafted += len(drafts)
        for i, row in enumerate(logits):
            token = self._sampler.choose(row)
            self._completion += 1
            agrees = i < len(drafts) and drafts[i] == token
            self._accepted += agrees
            top = request.logprobs
            score = Scored(token) if top is None else Scored(token, *log_probabilities(row, token, top))
            if token in self._stop_ids:
                self.finish("stop", token, scored=None if top is None else score)
                break
            self._sampler.accept(token)
            self.window.append(token)
            scored.append(score)
            pieces.append(self._text.add(token, self._completion > request.sampling.min_tokens))
            if self._text.found is not None:
                self.finish("stop", self._text.found)
            elif self._sampler.matcher is not None and self._sampler.matcher.over:
                self.finish("stop")
            elif self._completion == request.max_tokens or self._ends_here():
                self.finish("length")
            if self.end or not agrees:
                break
        self.read = len(self.window) - 1
        if self.end:
            pieces.append(self._text.end())
        text = "".join(pieces)
        return Delta(text, tuple(scored)) if scored or text else None

    def _ends_here(self) -> bool:
        return self.request.past_context == "stop" and len(self.window) == self._context

    def finish(
        self, reason: FinishReason, stop: str | int | None = None, message: str = "", scored: Scored | None = None
    ) -> Finished:
        """Ends the answer; the first end counts."""
        if self.end is None:
            self.end = Finished(
                reason,
                stop,
                prompt_tokens=len(self.request.ids),
                completion_tokens=self._completion,
                cached_tokens=self.cached,
                drafted=self._drafted,
                accepted=self._accepted,
                message=message,
                scored=scored,
            )
        return self.end

    def rest(self) -> Delta | None:
        """The text that is held back when the engine ends the answer: it may have been a beginning of a stop text."""
        text = self._text.end()
        return Delta(text, ()) if text else None
