"""Direct preference optimization (Rafailov et al. 2023, arXiv:2305.18290): its loss, its reference, its validation.

The loss of a pair is -log sigmoid(beta * ((log p - log p_ref)(chosen) - (log p - log p_ref)(rejected))), where p is of
all tokens of an answer and p_ref is the model that the training began with. The reference is computed once, before the
first step and in evaluation mode, and kept under the hash of weights and data, so it cannot move.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from foundry.chat.pairs import EncodedPair, data_hash, sides_of
from foundry.config import DataError, FoundryError
from foundry.models import MiniLLM
from foundry.models.files import weights_sha256
from foundry.models.loss import soft_cap, sum_dtype
from foundry.models.scoring import LOGITS, POSITIONS
from foundry.utils.files import read_json, sha256_json, write_json
from foundry.utils.targets import IGNORE


class DpoLoss:
    """The loss of a `PairLoader`'s batches, summed over pairs.

    Args:
        beta: how strongly the model is held to its parent.
        sft_weight: of the nats per token of the chosen answer, which keep its probability from falling with that of
            the rejected one (RPO, Pang et al. 2024, arXiv:2404.19733).
        chunk: positions whose logits exist at a time.
        reference: the hash of weights and data that the reference belongs to.
    """

    def __init__(self, beta: float, sft_weight: float, chunk: int, reference: str = "") -> None:
        self.beta, self.sft_weight, self.chunk, self.reference = beta, sft_weight, chunk, reference

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "name": "dpo",
            "beta": self.beta,
            "sft_weight": self.sft_weight,
            "reference_sha256": self.reference,
        }

    def count(self, tokens: Tensor, targets: Tensor, reference: Tensor) -> Tensor:
        """Pairs."""
        return torch.tensor(len(tokens), device=tokens.device)

    def __call__(self, model: MiniLLM, tokens: Tensor, targets: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
        scores = side_log_likelihoods(model, tokens, targets, self.chunk)
        loss = -F.logsigmoid(self.beta * margins(scores, reference)).sum()
        if self.sft_weight:
            lengths = (targets[:, 0] != IGNORE).sum(-1)
            loss = loss - self.sft_weight * (scores[:, 0] / lengths).sum()
        return loss.float(), loss.detach().float()


def side_log_likelihoods(model: MiniLLM, tokens: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The log-probability of each side's answer: (P, 2) from (P, 2, T), with a gradient."""
    return model.log_likelihoods(tokens.flatten(0, 1), targets.flatten(0, 1), chunk=chunk).view(-1, 2)


def margins(scores: Tensor, reference: Tensor) -> Tensor:
    """By how many nats each pair's log-ratio is larger on the chosen side: (P,) from (P, 2)."""
    ratios = scores - reference.to(scores.dtype)
    return ratios[:, 0] - ratios[:, 1]


def reference_of(
    model: MiniLLM, pairs: Sequence[EncodedPair], chunk: int, precision: torch.dtype, folder: Path
) -> tuple[np.ndarray, str]:
    """The log-probabilities of both sides of every pair, from `folder` if they were computed before.

    Args:
        model: on the device of the training; its mode is as before.
        precision: of the trainer's products: the reference is rounded as the model is.

    Returns:
        (float64 (pairs, 2), the hash of weights and data that names them).

    Raises:
        DataError: if there is no pair.
        FoundryError: if a value is not finite: the weights are damaged.
    """
    if not pairs:
        raise DataError("there is no pair of answers that fits the context: see reports/preferences.json")
    made_from = {"weights_sha256": weights_sha256(model), "data_sha256": data_hash(pairs)}
    name = sha256_json(made_from)
    device = model.tok_embeddings.weight.device
    how = f"{str(precision).removeprefix('torch.')}-{device.type}"
    path = folder / f"{name[:32]}-{how}.json"
    if path.is_file():
        known = read_json(path, "log-probabilities of a reference; delete it", DataError)
        if known.get("made_from") == made_from and known.get("sha256") == sha256_json(known.get("values")):
            return np.array(known["values"], np.float64), name
    values = _log_likelihoods(model, pairs, chunk, precision)
    if not np.isfinite(values).all():
        raise FoundryError("a log-probability under the parent is not finite: its weights are damaged")
    rows = values.tolist()
    write_json(path, {"made_from": made_from, "sha256": sha256_json(rows), "values": rows})
    return values, name


@torch.no_grad()
def _log_likelihoods(model: MiniLLM, pairs: Sequence[EncodedPair], chunk: int, precision: torch.dtype) -> np.ndarray:
    """float64 (pairs, 2), in evaluation mode."""
    device = model.tok_embeddings.weight.device
    values = np.zeros((len(pairs), 2))
    training = model.training
    model.eval()
    try:
        for at in by_length(pairs, device):
            tokens, targets = (t.to(device) for t in sides_of([pairs[i] for i in at]))
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                values[at] = side_log_likelihoods(model, tokens, targets, chunk).double().cpu().numpy()
    finally:
        model.train(training)
    return values


def by_length(pairs: Sequence[EncodedPair], device: torch.device, rows: int | None = None) -> list[list[int]]:
    """The numbers of pairs in parts of like length: of at most `rows` pairs, or as many as a CPU's cache likes."""
    order = sorted(range(len(pairs)), key=lambda i: (-pairs[i].width, i))
    parts, at = [], 0
    while at < len(order):
        cached = max(1, POSITIONS // (2 * pairs[order[at]].width))
        n = min(rows or cached, cached) if device.type == "cpu" else (rows or 8)
        parts.append(order[at : at + n])
        at += n
    return parts


class HeldOutPairs:
    """A `training.protocols.Validator` of pairs that are not trained on.

    Args:
        pairs: of the validation split.
        reference: float64 (pairs, 2).
        parent: the model as it is before the training; a copy is kept.
        loss: of the training.
    """

    def __init__(self, pairs: Sequence[EncodedPair], reference: np.ndarray, parent: MiniLLM, loss: DpoLoss) -> None:
        self.pairs, self.reference, self.loss = list(pairs), reference, loss
        self.parent = copy.deepcopy(parent).eval().requires_grad_(False)

    @property
    def identity(self) -> dict[str, Any]:
        return {"pairs_sha256": data_hash(self.pairs)}

    def __call__(
        self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> dict[str, float]:
        """Metrics of the held-out pairs.

        Returns:
            val_loss: of the pairs, without the term of SFT. val_accuracy: share of the pairs whose chosen side gained
            more than the rejected one (ties: one half); val_longer_wins: the share that the rule "the longer one is
            better" gets right, which costs no training. val_margin, val_chosen and val_rejected: nats per pair by
            which the margin and the log-probability of each side rose. val_kl: nats per token of the answers by which
            the model differs from its parent, KL(model || parent).
        """
        scores, kl = self.scores(model, apply, precision, rows)
        rose = scores - self.reference
        margin = rose[:, 0] - rose[:, 1]
        return {
            "val_loss": float(np.logaddexp(0, -self.loss.beta * margin).mean()),
            "val_accuracy": float((0.5 + 0.5 * np.sign(margin)).mean()),
            "val_longer_wins": float(np.mean([p.longer_wins for p in self.pairs])),
            "val_margin": float(margin.mean()),
            "val_chosen": float(rose[:, 0].mean()),
            "val_rejected": float(rose[:, 1].mean()),
            "val_kl": kl,
        }

    def scores(
        self, model: MiniLLM, apply: Callable[..., Any], precision: torch.dtype, rows: int
    ) -> tuple[np.ndarray, float]:
        """(log-probabilities (pairs, 2), nats per token from the parent)."""
        device = model.tok_embeddings.weight.device
        self.parent.to(device)
        values, kl, count = np.zeros((len(self.pairs), 2)), 0.0, 0
        training = model.training
        model.eval()
        try:
            for at in by_length(self.pairs, device, rows):
                tokens, targets = (t.to(device) for t in sides_of([self.pairs[i] for i in at]))
                with torch.no_grad(), torch.autocast(device.type, precision, enabled=precision != torch.float32):
                    found, nats = apply(self._measure, tokens, targets)
                values[at] = found.double().cpu().numpy()
                kl, count = kl + nats, count + int((targets != IGNORE).sum())
        finally:
            model.train(training)
        return values, kl / count

    def _measure(self, model: MiniLLM, tokens: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """(log-probabilities (P, 2), KL summed over the positions of the answers)."""
        at = targets.flatten() != IGNORE
        states = [m.hidden(tokens.flatten(0, 1)).flatten(0, 1)[at] for m in (model, self.parent)]
        kl, chosen = 0.0, []
        chunk = max(1, LOGITS // model.cfg.vocab_size)
        for mine, theirs, y in zip(*(s.split(chunk) for s in states), targets.flatten()[at].split(chunk), strict=True):
            log_p, log_q = (
                soft_cap(F.linear(x, m.head_weight), m.cfg.logit_softcap).float().log_softmax(-1)
                for x, m in ((mine, model), (theirs, self.parent))
            )
            kl += F.kl_div(log_q, log_p, reduction="sum", log_target=True).item()
            chosen.append(log_p.gather(1, y[:, None])[:, 0])
        each = torch.zeros(targets.numel(), dtype=torch.float32, device=targets.device)
        each[at] = torch.cat(chosen)
        return each.view(targets.shape).sum(-1, dtype=sum_dtype(each.device)), kl
