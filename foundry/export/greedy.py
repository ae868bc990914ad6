"""Greedy continuations: what another engine must reproduce, apart from ties, and samples for the model card."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from foundry.config import ExportError
from foundry.export.differences import first_difference
from foundry.export.proof import GreedyProof
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import EOS_ID

NEW_TOKENS = 64
SAMPLE_PROMPTS = ("The ", "In the beginning", "1, 2, 3,")
SAMPLE_TOKENS = 48


@dataclass(frozen=True)
class Continuation:
    """A prompt and its greedy continuation by the model.

    Attributes:
        prompt: token ids, cut to half of the context.
        tokens: at most `limit`; fewer only if the last one is the end symbol.
        limit: `NEW_TOKENS`, or what the context has room for.
    """

    prompt: list[int]
    tokens: list[int]
    limit: int


@dataclass(frozen=True)
class Sample:
    """A prompt and its greedy continuation as text."""

    prompt: str
    text: str


def continuation(generator: Generator, prompt: str) -> Continuation:
    """The greedy continuation of a prompt."""
    T = generator.model.cfg.max_seq_len
    ids = generator.tokenizer.encode(prompt, bos=True)[: T // 2]
    limit = min(NEW_TOKENS, T - len(ids))
    new = list(generator.generate_ids(ids, max_new_tokens=limit, temperature=0))
    return Continuation(ids, new + [EOS_ID] * (len(new) < limit), limit)


def greedy_samples(model: MiniLLM, tokenizer: Tokenizer) -> list[Sample]:
    """Continuations of at most `SAMPLE_TOKENS` tokens of the `SAMPLE_PROMPTS` that fit the context."""
    generator = Generator(model, tokenizer, "cpu")
    fitting = [p for p in SAMPLE_PROMPTS if len(tokenizer.encode(p, bos=True)) < model.cfg.max_seq_len]
    return [Sample(p, generator.generate_text(p, max_new_tokens=SAMPLE_TOKENS, temperature=0)) for p in fitting]


def prove_greedy(
    model: MiniLLM,
    tokenizer: Tokenizer,
    continuations: list[Continuation],
    theirs: list[list[int]],
    tolerance: float,
    engine: str,
) -> GreedyProof:
    """Compares another engine's greedy tokens with the model's; a tie ends the comparison of a prompt and is counted.

    Two logits tie where they are within twice the tolerance: each may be off by it, in either direction.

    Args:
        theirs: the tokens that `engine` chose for each of `continuations`.
        tolerance: largest difference of logits that the comparison of logits allows.

    Raises:
        ExportError: naming the first token that differs.
    """
    tokens, ties = 0, 0
    for c, seen in zip(continuations, theirs, strict=True):
        tie = _first_tie(model, tokenizer, c, seen, tolerance, engine)
        tokens += len(c.tokens) if tie is None else tie
        ties += tie is not None
    return GreedyProof(prompts=len(continuations), tokens=tokens, ties=ties)


@torch.inference_mode()
def _first_tie(
    model: MiniLLM, tokenizer: Tokenizer, c: Continuation, theirs: list[int], tolerance: float, engine: str
) -> int | None:
    """The position of the first token that differs, which must be a tie; None if no token differs."""
    if c.tokens == theirs:
        return None
    at = first_difference(c.tokens, theirs)
    what = f"greedy continuations of {tokenizer.decode(c.prompt)[:60]!r} differ at token {at}"
    both = f"{tokenizer.decode(c.tokens)[:80]!r} here, {tokenizer.decode(theirs)[:80]!r} in {engine}"
    if at == min(len(c.tokens), len(theirs)):
        raise ExportError(f"{what}, where one of them ends: {both}")
    logits = model(torch.tensor([c.prompt + c.tokens[:at]]))[0][0, -1]
    gap = abs(logits[c.tokens[at]] - logits[theirs[at]]).item()
    if not gap <= 2 * tolerance:
        raise ExportError(f"{what}: {both} (logits {gap:.3g} apart)")
    return at
