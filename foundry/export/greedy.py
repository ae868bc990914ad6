"""Greedy continuations of two implementations: the same tokens, or a tie that either may break."""

from __future__ import annotations

import torch

from foundry.config import ExportError
from foundry.inference import Generator
from foundry.models import MiniLLM
from foundry.tokenizers import Tokenizer
from foundry.tokenizers.tokenizer import EOS_ID

NEW_TOKENS = 64


def continuation(generator: Generator, prompt: str) -> tuple[list[int], list[int]]:
    """(ids of the prompt, cut to half of the context; `NEW_TOKENS` greedy ones, the end symbol last where it came)."""
    T = generator.model.cfg.max_seq_len
    ids = generator.tokenizer.encode(prompt, bos=True)[: T // 2]
    n = min(NEW_TOKENS, T - len(ids))
    new = list(generator.generate_ids(ids, max_new_tokens=n, temperature=0))
    return ids, new + [EOS_ID] * (len(new) < n)


@torch.inference_mode()
def same_tokens(
    model: MiniLLM, tokenizer: Tokenizer, ids: list[int], ours: list[int], theirs: list[int], tolerance: float, who: str
) -> tuple[int, int]:
    """(equal tokens, 1 if a tie ended the comparison).

    Two logits tie where they are within twice the tolerance: each may be off by it, to either side.

    Args:
        ids: the prompt.
        ours, theirs: what this model and `who` made of it.

    Raises:
        ExportError: naming the first token that differs.
    """
    if ours == theirs:
        return len(ours), 0
    pairs = enumerate(zip(ours, theirs, strict=False))
    at = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    what = f"greedy continuations of {tokenizer.decode(ids)[:60]!r} differ at token {at}"
    told = f"{tokenizer.decode(ours)[:80]!r} here, {tokenizer.decode(theirs)[:80]!r} in {who}"
    if at == min(len(ours), len(theirs)):
        raise ExportError(f"{what}, where one of them ends: {told}")
    logits = model(torch.tensor([ids + ours[:at]]))[0][0, -1]
    gap = abs(logits[ours[at]] - logits[theirs[at]]).item()
    if not gap <= 2 * tolerance:
        raise ExportError(f"{what}: {told} (logits {gap:.3g} apart)")
    return at, 1
