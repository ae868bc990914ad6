"""Log-likelihoods of answers: nats of reference answers, and the distance of a model from its parent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from foundry.chat.answers import Answered
from foundry.chat.prompts import HeldOutPrompt
from foundry.data.tokens.documents import Window, batches
from foundry.evaluation.tokens import logits
from foundry.models import MiniLLM
from foundry.models.scoring import LOGITS, in_cache, score_documents
from foundry.tokenizers import Tokenizer
from foundry.utils.targets import IGNORE

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class References:
    """What the reference answers cost: float64 nats and int64 UTF-8 bytes by prompt; both 0 without a reference."""

    nats: np.ndarray
    bytes: np.ndarray


def reference_nats(model: MiniLLM, tokenizer: Tokenizer, prompts: Sequence[HeldOutPrompt]) -> References:
    """Scores the text of the reference answers after their prompts, in float32; the end symbol is not scored.

    A reference that does not fit the context is left out.
    """
    items, sizes = [], np.zeros(len(prompts), np.int64)
    for number, p in enumerate(prompts):
        if not p.reference:
            continue
        ids = [*p.ids, *tokenizer.encode(p.reference)]
        if len(ids) <= model.cfg.max_seq_len:
            items.append(Window(number, np.array(ids, np.int64), len(p.ids) - 1))
            sizes[number] = len(p.reference.encode())
    rows = batches(items, max(1, BATCH_TOKENS // model.cfg.max_seq_len))
    nats, _ = score_documents(model, rows, len(prompts))
    return References(nats, sizes)


@dataclass(frozen=True)
class Divergence:
    """The KL divergence of a model from its parent: float64 nats and int64 tokens by prompt."""

    nats: np.ndarray
    tokens: np.ndarray


@torch.inference_mode()
def divergence(
    model: MiniLLM, parent: MiniLLM, prompts: Sequence[HeldOutPrompt], answers: Sequence[Answered]
) -> Divergence:
    """KL(model | parent) of the whole next-token distribution, summed over the tokens of the model's own answers.

    The symbol that ended an answer counts as one of its tokens.
    """
    device = model.tok_embeddings.weight.device
    nats, tokens = np.zeros(len(prompts)), np.zeros(len(prompts), np.int64)
    items = []
    for number, (p, a) in enumerate(zip(prompts, answers, strict=True)):
        # Only the places of the targets matter; the last one stands for the end symbol.
        ids = [*p.ids, *a.ids, *([0] if a.ended else [])]
        if len(ids) > len(p.ids):
            items.append(Window(number, np.array(ids, np.int64), len(p.ids) - 1))
    chunk = max(1, LOGITS // model.cfg.vocab_size)
    for x, y, numbers in batches(items, max(1, BATCH_TOKENS // model.cfg.max_seq_len)):
        targets = torch.from_numpy(y).to(device)
        found = torch.zeros(y.shape, dtype=torch.float64, device=device)
        parts = []
        for tokens_in, targets_in in in_cache(torch.from_numpy(x).to(device), targets):
            at = targets_in != IGNORE
            mine, theirs = (m.hidden(tokens_in)[at].split(chunk) for m in (model, parent))
            for h, g in zip(mine, theirs, strict=True):
                p, q = logits(model, h).log_softmax(-1), logits(parent, g).log_softmax(-1)
                parts.append((p.exp() * (p - q)).double().sum(-1))
        found[targets != IGNORE] = torch.cat(parts)
        np.add.at(nats, numbers, found.sum(-1).cpu().numpy())
        np.add.at(tokens, numbers, (y != IGNORE).sum(-1))
    return Divergence(np.maximum(nats, 0.0), tokens)  # rounding may give -1e-9 for a model and itself
